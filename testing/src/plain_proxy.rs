//! The data path of upstream flannel's `udp` backend: a TUN device, a UDP socket, and a loop between them that moves
//! one packet per system call.
//!
//! It does on the wire what upstream does: the first matching route wins, the sender of a datagram is not checked, each
//! side decrements the TTL, and undeliverable packets are dropped silently.

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

/// A host that behaves like upstream's `udp` backend. Dropping it removes the device.
#[derive(Debug)]
pub struct PlainProxy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Options of a [`PlainProxy`].
#[derive(Clone, Debug)]
pub struct PlainProxyOptions {
    /// The overlay network, which is routed to the device.
    pub network: Ipv4Net,
    /// The host's own subnet, whose first address the device gets.
    pub subnet: Ipv4Net,
    /// The address to listen on; all hosts use its port.
    pub local: SocketAddrV4,
    /// The MTU of the device, 28 bytes below that of the link.
    pub mtu: u32,
    /// The other hosts.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
}

/// How long the loop may take to notice that it must stop.
const TICK: Duration = Duration::from_millis(20);

impl PlainProxy {
    /// Starts the proxy in a namespace. It carries traffic when this returns.
    ///
    /// # Errors
    /// Returns the kernel's error if the device, the port or a route cannot be created.
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
        let stopped = Arc::clone(&stop);
        let proxy = Loop { tun, socket, options };
        let thread =
            thread::Builder::new().name("plain-proxy".to_owned()).spawn(move || proxy.run(&stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for PlainProxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the loop has ended it too.
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
            // Alternates until both sides are empty.
            loop {
                let out = self.outward(&mut buf);
                let inward = self.inward(&mut buf);
                if !(out || inward) || stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }

    /// Moves one packet and returns whether there was one.
    fn outward(&self, buf: &mut [u8]) -> bool {
        let Ok(len) = (&self.tun).read(buf) else { return false };
        let Some(packet) = buf.get_mut(..len).filter(|packet| packet.len() >= 20) else { return true };
        let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        let route = self.options.routes.iter().find(|(subnet, _)| subnet.contains(&destination));
        if let Some((_, host)) = route
            && decrement_ttl(packet)
        {
            let to = SocketAddr::new(IpAddr::V4(*host), self.options.local.port());
            // Upstream's socket blocks when its buffer is full.
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

/// Decrements the TTL, which wraps, and adjusts the checksum. Returns whether the TTL is not zero.
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
