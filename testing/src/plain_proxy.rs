//! Upstream flannel's `udp` backend, as its packets show it to others: a TUN device and one UDP socket, and between the
//! two a loop that moves one packet with each system call.
//!
//! It does what upstream does on the wire and no better: the first route that matches, no look at who sent a datagram,
//! one off the time to live on each side, no word to the source of what cannot go on.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flannel_netlink::{Address, LinkChange, Namespace, Netlink, Route, Tun, TunOptions, WriteRequest as Put};
use ipnet::{IpNet, Ipv4Net};

use crate::lab::LabError;
use crate::sys;

/// A host that speaks as upstream's `udp` backend does. The device goes with it.
#[derive(Debug)]
pub struct PlainProxy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`PlainProxy`] is told.
#[derive(Clone, Debug)]
pub struct PlainProxyOptions {
    /// The whole overlay, which is routed to the device.
    pub network: Ipv4Net,
    /// The host's own subnet, whose first address the device gets.
    pub subnet: Ipv4Net,
    /// Where to listen; all hosts have the same port.
    pub local: SocketAddrV4,
    /// The MTU of the device, 28 bytes below that of the link.
    pub mtu: u32,
    /// The other hosts.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
}

/// How long the loop may take to see that it is to end.
const TICK: Duration = Duration::from_millis(20);

impl PlainProxy {
    /// Starts it in a namespace; it carries traffic when this returns.
    ///
    /// # Errors
    /// Those of the kernel: the device, the port or a route is not to be had.
    pub fn start(namespace: &Namespace, options: PlainProxyOptions) -> Result<Self, LabError> {
        let opened = Tun::open_in(namespace, &TunOptions::new("plain%d"))?;
        let mut netlink = Netlink::open_in(namespace)?;
        let address = IpNet::from(Ipv4Net::from(options.subnet.network()));
        netlink.add_address(&Address::new(opened.index, address))?;
        let up = LinkChange { up: Some(true), mtu: Some(options.mtu), ..LinkChange::default() };
        netlink.change_link(opened.index, &up)?;
        let route = Put::PutRoute(Route::attached(options.network.into(), opened.index));
        netlink.apply(&[route]).into_iter().collect::<Result<(), _>>()?;
        let socket = namespace.run(|| UdpSocket::bind(options.local))??;
        socket.set_nonblocking(true)?;
        let tun = File::from(opened.fd);
        sys::set_nonblocking(tun.as_fd())?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let proxy = Loop { tun, socket, options };
        let thread = thread::Builder::new().name("plain-proxy".to_owned()).spawn(move || proxy.run(&told))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for PlainProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A loop that panicked is over as well.
            let _ = thread.join();
        }
    }
}

struct Loop {
    tun: File,
    socket: UdpSocket,
    options: PlainProxyOptions,
}

impl Loop {
    fn run(&self, stop: &AtomicBool) {
        let mut buf = vec![0; self.options.mtu as usize];
        while !stop.load(Ordering::Relaxed) {
            if sys::wait_either(self.tun.as_fd(), self.socket.as_fd(), TICK).is_err() {
                return;
            }
            // In turn, until there is nothing on either side.
            loop {
                let out = self.outward(&mut buf);
                let inward = self.inward(&mut buf);
                if !(out || inward) || stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    /// Moves one packet; tells whether there was one.
    fn outward(&self, buf: &mut [u8]) -> bool {
        let Ok(len) = (&self.tun).read(buf) else { return false };
        let Some(packet) = buf.get_mut(..len).filter(|packet| packet.len() >= 20) else { return true };
        let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let route = self.options.routes.iter().find(|(subnet, _)| subnet.contains(&destination));
        if let Some((_, host)) = route
            && decrement_ttl(packet)
        {
            let to = SocketAddr::new(IpAddr::V4(*host), self.options.local.port());
            // Upstream's socket waits when its buffer is full.
            while self.socket.send_to(packet, to).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {}
        }
        true
    }

    fn inward(&self, buf: &mut [u8]) -> bool {
        let Ok(len) = self.socket.recv(buf) else { return false };
        let Some(packet) = buf.get_mut(..len).filter(|packet| packet.len() >= 20) else { return true };
        if decrement_ttl(packet) {
            let refused = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
            while (&self.tun).write(packet).is_err_and(refused) {}
        }
        true
    }
}

/// Takes one from the time to live, which wraps, and patches the checksum; tells whether any is left.
fn decrement_ttl(packet: &mut [u8]) -> bool {
    packet[8] = packet[8].wrapping_sub(1);
    let (sum, carry) = u16::from_be_bytes([packet[10], packet[11]]).overflowing_add(0x0100);
    let sum = match sum.wrapping_add(u16::from(carry)) {
        0xffff => 0,
        sum => sum,
    };
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[8] != 0
}
