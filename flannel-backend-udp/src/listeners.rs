//! The sockets, one for each family of the network: opened, or taken back from a process that is gone.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use flannel_core::{BackendError, ExternalInterface, NetworkConfig};
use flannel_netlink::Namespace;

use crate::filter;
use crate::peers::Routing;
use crate::store::{Keeper, Slot};
use crate::sys::socket;
use crate::worker::Offloads;

/// Room for what arrives while the thread is busy, some milliseconds of it at full speed.
const RECEIVE_BUFFER: i32 = 8 << 20;

/// Room for what waits for hosts that are not reached: each may hold some 200 KiB (`unres_qlen_bytes`, arp(7)) for
/// seconds, and must not keep others from being sent to.
const SEND_BUFFER: i32 = 32 << 20;

/// All sockets: one for each address that is to be listened on, or fewer after one broke.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// Where to listen.
    pub(crate) local: Vec<SocketAddr>,
    all: Vec<Listener>,
    keeper: Keeper,
    namespace: Namespace,
    offloads: Offloads,
}

impl Listeners {
    /// Takes where to listen; nothing is opened yet.
    pub(crate) fn new(
        namespace: Namespace,
        keeper: Keeper,
        local: Vec<SocketAddr>,
        offloads: Offloads,
    ) -> Self {
        Self { local, all: Vec::new(), keeper, namespace, offloads }
    }

    /// Tells whether there is a socket for each address, and no other.
    pub(crate) fn are_right(&self) -> bool {
        self.all.len() == self.local.len()
            && self.all.iter().all(|listener| self.local.contains(&listener.local))
    }

    /// Listens on each address, with the socket that is there, an old one, or a new one.
    pub(crate) fn listen(&mut self) -> Result<(), BackendError> {
        self.all.retain(|listener| self.local.contains(&listener.local));
        for slot in Slot::SOCKETS {
            if !self.local.iter().any(|local| Slot::of(local) == slot) {
                self.keeper.forget(slot);
            }
        }
        for local in &self.local {
            if self.all.iter().any(|listener| listener.local == *local) {
                continue;
            }
            let old = Listener::take_back(&self.keeper, &self.namespace, *local, self.offloads);
            let listener = match old {
                Some(listener) => listener,
                None => {
                    let listener = Listener::open(&self.namespace, *local, self.offloads)?;
                    self.keeper.keep(Slot::of(local), listener.socket.as_fd());
                    listener
                }
            };
            self.all.push(listener);
        }
        Ok(())
    }

    /// Closes all; none of them is to be taken back.
    pub(crate) fn close(&mut self) {
        Slot::SOCKETS.into_iter().for_each(|slot| self.keeper.forget(slot));
        self.all.clear();
    }

    /// Opens those that other addresses take and that are not there yet.
    pub(crate) fn prepare(&self, local: &[SocketAddr]) -> Result<Vec<Listener>, BackendError> {
        let new = local.iter().filter(|local| !self.local.contains(local));
        new.map(|local| Listener::open(&self.namespace, *local, self.offloads)).collect()
    }

    /// Goes over to other addresses, with the sockets that were prepared for them.
    pub(crate) fn take(&mut self, fresh: Vec<Listener>, local: Vec<SocketAddr>) {
        for listener in &fresh {
            self.keeper.keep(Slot::of(&listener.local), listener.socket.as_fd());
        }
        self.all.extend(fresh);
        self.local = local;
    }

    /// Lets in from the network who is a peer. A socket that is older than what is known of the peers keeps its filter.
    pub(crate) fn set_filters(&self, routing: &Routing, knows_peers: bool) {
        for listener in &self.all {
            if listener.is_old && !knows_peers {
                continue;
            }
            let program = filter::program(listener.local.is_ipv6(), routing.peers.publics());
            if let Err(error) = socket::attach_filter(&listener.socket, &program) {
                // The packet path checks as well.
                tracing::debug!(%error, "the kernel takes no filter");
            }
        }
    }

    /// The sockets, for the packet path.
    pub(crate) fn sockets(&self) -> Vec<Arc<UdpSocket>> {
        self.all.iter().map(|listener| Arc::clone(&listener.socket)).collect()
    }

    /// How many datagrams they dropped since this was asked last.
    pub(crate) fn new_drops(&mut self) -> u64 {
        self.all.iter_mut().map(Listener::new_drops).sum()
    }
}

/// A socket, and how much it had dropped when it was last asked.
#[derive(Debug)]
pub(crate) struct Listener {
    local: SocketAddr,
    socket: Arc<UdpSocket>,
    dropped: u32,
    /// Whether a process that is gone opened it, whose filter it still has.
    is_old: bool,
}

impl Listener {
    /// Listens on an address.
    fn open(namespace: &Namespace, local: SocketAddr, offloads: Offloads) -> Result<Self, BackendError> {
        let bound = namespace.run(|| UdpSocket::bind(local)).and_then(|bound| bound);
        let socket = bound.map_err(|source| BackendError::Kernel {
            object: format!("cannot listen on {local} (UDP)"),
            source: source.into(),
        })?;
        Ok(Self::new(local, socket, offloads, false))
    }

    /// Takes back a socket that listens there, if one is kept. What arrived meanwhile waits in it.
    fn take_back(
        keeper: &Keeper,
        namespace: &Namespace,
        local: SocketAddr,
        offloads: Offloads,
    ) -> Option<Self> {
        keeper.take_back(Slot::of(&local), |kept| {
            let socket = check(kept, namespace, local).map_err(|error| error.to_string())?;
            Ok(Self::new(local, socket, offloads, true))
        })
    }

    fn new(local: SocketAddr, socket: UdpSocket, offloads: Offloads, is_old: bool) -> Self {
        // An old one may have it otherwise.
        if let Err(error) = socket::set_gro(&socket, offloads.receive_bursts)
            && offloads.receive_bursts
        {
            tracing::info!(%error, "the kernel does not receive bursts: datagrams are taken one by one");
        }
        if let Err(error) = socket::force_buffers(&socket, RECEIVE_BUFFER, SEND_BUFFER) {
            tracing::debug!(%error, "the buffers keep their size");
        }
        let dropped = socket::drops(&socket).unwrap_or_default();
        Self { local, socket: Arc::new(socket), dropped, is_old }
    }

    /// How many datagrams it dropped since it was asked last.
    fn new_drops(&mut self) -> u64 {
        let Ok(now) = socket::drops(&self.socket) else { return 0 };
        let new = now.wrapping_sub(self.dropped);
        self.dropped = now;
        u64::from(new)
    }
}

/// Finds whether a descriptor is a socket that listens where this host should, and talks with everybody.
fn check(kept: OwnedFd, namespace: &Namespace, local: SocketAddr) -> io::Result<UdpSocket> {
    let unfit = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !socket::is_udp(kept.as_fd())? {
        return unfit("it is not a UDP socket".to_owned());
    }
    let socket = UdpSocket::from(kept);
    let bound = socket.local_addr()?;
    if (bound.ip(), bound.port()) != (local.ip(), local.port()) {
        return unfit(format!("it listens on {bound}, not on {local}"));
    }
    if let Ok(peer) = socket.peer_addr() {
        return unfit(format!("it talks with {peer} only"));
    }
    if Namespace::of_socket(&socket)? != *namespace {
        return unfit("it is in another network namespace".to_owned());
    }
    Ok(socket)
}

/// The addresses to listen on, one for each family of the network.
pub(crate) fn local_addresses(
    config: &NetworkConfig,
    external: &ExternalInterface,
    port: u16,
) -> Result<Vec<SocketAddr>, BackendError> {
    let v4 = config.ipv4.map(|_| (external.v4.map(IpAddr::V4), "IPv4"));
    let v6 = config.ipv6.map(|_| (external.v6.map(IpAddr::V6), "IPv6"));
    let address = |(address, family): (Option<IpAddr>, &str)| {
        let address = address.ok_or_else(|| {
            BackendError::Host(format!("the interface {} has no {family} address", external.name))
        })?;
        Ok(SocketAddr::new(address, port))
    };
    v4.into_iter().chain(v6).map(address).collect()
}
