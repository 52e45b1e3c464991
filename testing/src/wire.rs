//! A link between two namespaces that drops and reorders packets.
//!
//! Each end is a TUN device, and one thread per direction moves packets between them, so no traffic control of the
//! kernel is needed.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flannel_netlink::{Address, LinkChange, Namespace, Netlink, Tun, TunOptions};
use ipnet::IpNet;

use crate::lab::LabError;
use crate::sys;

/// Options of a [`Wire`].
#[derive(Clone, Copy, Debug)]
pub struct WireOptions {
    /// The MTU of both ends, in bytes.
    pub mtu: u32,
    /// The share of packets that are dropped, from 0 to 1.
    pub loss: f64,
    /// The share of packets that are delivered after later ones, from 0 to 1.
    pub reordering: f64,
    /// The seed of all randomness.
    pub seed: u64,
}

/// An MTU of 1500 bytes, without loss and reordering.
impl Default for WireOptions {
    fn default() -> Self {
        Self { mtu: 1500, loss: 0.0, reordering: 0.0, seed: 1 }
    }
}

/// A link between two namespaces. Dropping it removes both ends.
#[derive(Debug)]
pub struct Wire {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How long a thread may take to notice that it must stop.
const TICK: Duration = Duration::from_millis(20);

/// The number of packets that overtake a late one.
const LATE_BY: usize = 3;

impl Wire {
    /// Connects two namespaces by a link that is called `name` in both, with these addresses.
    ///
    /// # Errors
    /// Returns the kernel's error if a name or an address is taken, or `/dev/net/tun` is missing.
    pub fn join(
        name: &str,
        ends: [(&Namespace, &[IpNet]); 2],
        options: WireOptions,
    ) -> Result<Self, LabError> {
        let [one, other] = ends.map(|(namespace, addresses)| end(name, namespace, addresses, options.mtu));
        let (one, other) = (Arc::new(one?), Arc::new(other?));
        let mut wire = Self { stop: Arc::default(), threads: Vec::new() };
        for (seed, from, to) in [(0, &one, &other), (1, &other, &one)] {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&wire.stop));
            let chance = fastrand::Rng::with_seed(options.seed.wrapping_add(seed));
            let carry = move || carry(&from, &to, options, chance, &stop);
            wire.threads.push(thread::Builder::new().name("wire".to_owned()).spawn(carry)?);
        }
        Ok(wire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread has ended it too.
            let _ = thread.join();
        }
    }
}

fn end(name: &str, namespace: &Namespace, addresses: &[IpNet], mtu: u32) -> Result<File, LabError> {
    let opened = Tun::open_in(namespace, &TunOptions::new(name))?;
    let mut netlink = Netlink::open_in(namespace)?;
    // A long queue, so that only the wire drops packets.
    let up = LinkChange { up: Some(true), mtu: Some(mtu), txqlen: Some(5000), ..LinkChange::default() };
    netlink.change_link(opened.index, &up)?;
    for net in addresses {
        let flags = if net.addr().is_ipv6() { Address::NO_DAD } else { 0 };
        netlink.add_address(&Address { flags, ..Address::new(opened.index, *net) })?;
    }
    sys::set_nonblocking(opened.fd.as_fd())?;
    Ok(File::from(opened.fd))
}

fn carry(from: &File, to: &File, options: WireOptions, mut chance: fastrand::Rng, stop: &AtomicBool) {
    let mut buf = vec![0; 65_536];
    // Late packets, each with the number of packets that will overtake it.
    let mut late: Vec<(usize, Vec<u8>)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match (&mut &*from).read(&mut buf) {
            Ok(len) => {
                if chance.f64() < options.loss {
                    continue;
                }
                if chance.f64() < options.reordering {
                    late.push((LATE_BY, buf[..len].to_vec()));
                    continue;
                }
                put(to, &buf[..len]);
                late.iter_mut().for_each(|(left, _)| *left -= 1);
                late.extract_if(.., |(left, _)| *left == 0).for_each(|(_, packet)| put(to, &packet));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // No later packet follows.
                late.drain(..).for_each(|(_, packet)| put(to, &packet));
                if sys::wait_readable(from.as_fd(), TICK).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

fn put(mut to: &File, packet: &[u8]) {
    let refused = |error: io::Error| error.kind() == ErrorKind::WouldBlock;
    // A packet that the other end rejects is lost, as on any link.
    while to.write(packet).is_err_and(refused) {}
}
