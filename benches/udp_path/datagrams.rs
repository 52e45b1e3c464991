//! Small datagrams at the highest possible rate.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flannel_netlink::Namespace;

/// The bytes of payload.
const SIZE: usize = 64;

pub(crate) struct Count {
    sent: u64,
    received: u64,
    elapsed: Duration,
}

impl Count {
    pub(crate) fn per_second(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent as f64
    }
}

/// Sends for a while, this many datagrams per system call, and counts those that arrive.
pub(crate) fn send(from: &Namespace, to: &Namespace, address: IpAddr, time: Duration, burst: usize) -> Count {
    let receiver = to.run(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    let address: SocketAddr = receiver.local_addr().unwrap();
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    sender.connect(address).unwrap();
    if burst > 1 {
        set_option(&sender, UDP_SEGMENT, SIZE as libc::c_int).unwrap();
    }
    // The same receiver for both: one that takes bursts costs less, and the bench measures the path.
    set_option(&receiver, UDP_GRO, 1).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let received = scope.spawn(|| receive(&receiver, &stop));
        let (start, mut sent) = (Instant::now(), 0);
        let bytes = vec![0x5a; SIZE * burst];
        while start.elapsed() < time {
            // In rounds, so that reading the clock costs nothing.
            for _ in 0..32 {
                if sender.send(&bytes).is_ok() {
                    sent += burst as u64;
                }
            }
        }
        let elapsed = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        Count { sent, received: received.join().unwrap(), elapsed }
    })
}

/// Counts datagrams until none arrived for a while after the end.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut buf = vec![0; 65_536];
    let mut received = 0;
    loop {
        match socket.recv(&mut buf) {
            Ok(len) => received += (len / SIZE) as u64,
            Err(_) if stop.load(Ordering::Relaxed) => return received,
            Err(_) => {}
        }
    }
}

// `linux/udp.h`.
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;

#[allow(unsafe_code, reason = "the standard library does not set these options")]
fn set_option(socket: &UdpSocket, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let answer =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, name, (&raw const value).cast(), len) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
