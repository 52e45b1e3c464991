//! The sockets, one for each address family: opened, or restored from a previous process.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use flannel_core::{BackendError, ExternalInterface, NetworkConfig};
use flannel_netlink::Namespace;

use crate::filter;
use crate::peers::Routing;
use crate::store::{DescriptorSlot, OptionalStore};
use crate::sys::socket;
use crate::worker::Offloads;

/// Bytes of receive buffer: some milliseconds of traffic at full speed while the thread is busy.
const RECEIVE_BUFFER: i32 = 8 << 20;

/// Bytes of send buffer. Each unresolved neighbour can hold some 200 KiB (`unres_qlen_bytes`, arp(7)) for seconds, which
/// must not block packets to other hosts.
const SEND_BUFFER: i32 = 32 << 20;

/// The sockets, one for each listen address, or fewer after a failure.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// The listen addresses.
    pub(crate) local: Vec<SocketAddr>,
    all: Vec<Listener>,
    store: OptionalStore,
    namespace: Namespace,
    offloads: Offloads,
}

impl Listeners {
    /// Sets the listen addresses without opening a socket.
    pub(crate) fn new(
        namespace: Namespace,
        store: OptionalStore,
        local: Vec<SocketAddr>,
        offloads: Offloads,
    ) -> Self {
        Self { local, all: Vec::new(), store, namespace, offloads }
    }

    /// Returns whether there is exactly one socket for each address.
    pub(crate) fn is_complete(&self) -> bool {
        self.all.len() == self.local.len()
            && self.all.iter().all(|listener| self.local.contains(&listener.local))
    }

    /// Listens on each address: keeps an open socket, restores a stored one or opens a new one.
    pub(crate) fn listen(&mut self) -> Result<(), BackendError> {
        self.all.retain(|listener| self.local.contains(&listener.local));
        for slot in DescriptorSlot::SOCKETS {
            if !self.local.iter().any(|local| DescriptorSlot::of(local) == slot) {
                self.store.remove(slot);
            }
        }
        for local in &self.local {
            if self.all.iter().any(|listener| listener.local == *local) {
                continue;
            }
            let old = Listener::restore(&self.store, &self.namespace, *local, self.offloads);
            let listener = match old {
                Some(listener) => listener,
                None => {
                    let listener = Listener::open(&self.namespace, *local, self.offloads)?;
                    self.store.keep(DescriptorSlot::of(local), listener.socket.as_fd());
                    listener
                }
            };
            self.all.push(listener);
        }
        Ok(())
    }

    /// Closes all sockets and removes them from the store.
    pub(crate) fn close(&mut self) {
        DescriptorSlot::SOCKETS.into_iter().for_each(|slot| self.store.remove(slot));
        self.all.clear();
    }

    /// Opens the sockets that a change of the listen addresses needs.
    pub(crate) fn prepare(&self, local: &[SocketAddr]) -> Result<Vec<Listener>, BackendError> {
        let new = local.iter().filter(|local| !self.local.contains(local));
        new.map(|local| Listener::open(&self.namespace, *local, self.offloads)).collect()
    }

    /// Switches to other addresses with their prepared sockets.
    pub(crate) fn switch(&mut self, fresh: Vec<Listener>, local: Vec<SocketAddr>) {
        for listener in &fresh {
            self.store.keep(DescriptorSlot::of(&listener.local), listener.socket.as_fd());
        }
        self.all.extend(fresh);
        self.local = local;
    }

    /// Attaches a filter that drops datagrams from strangers. A restored socket keeps its filter until the peers are known.
    pub(crate) fn set_filters(&self, routing: &Routing, knows_peers: bool) {
        for listener in &self.all {
            if listener.is_restored && !knows_peers {
                continue;
            }
            let program = filter::program(listener.local.is_ipv6(), routing.peers.publics());
            if let Err(error) = socket::attach_filter(&listener.socket, &program) {
                // The packet path checks every datagram too.
                tracing::debug!(%error, "the kernel rejected the socket filter");
            }
        }
    }

    /// Returns the sockets for the packet path.
    pub(crate) fn sockets(&self) -> Vec<Arc<UdpSocket>> {
        self.all.iter().map(|listener| Arc::clone(&listener.socket)).collect()
    }

    /// Returns the number of datagrams that the sockets dropped since the last call.
    pub(crate) fn new_drops(&mut self) -> u64 {
        self.all.iter_mut().map(Listener::new_drops).sum()
    }
}

/// A socket with its drop counter at the last read.
#[derive(Debug)]
pub(crate) struct Listener {
    local: SocketAddr,
    socket: Arc<UdpSocket>,
    dropped: u32,
    /// Whether a previous process opened it; its filter is still attached.
    is_restored: bool,
}

impl Listener {
    /// Opens a socket on an address.
    fn open(namespace: &Namespace, local: SocketAddr, offloads: Offloads) -> Result<Self, BackendError> {
        let bound = namespace.run(|| UdpSocket::bind(local)).and_then(|bound| bound);
        let socket = bound.map_err(|source| BackendError::Kernel {
            object: format!("failed to listen on {local} (UDP)"),
            source: source.into(),
        })?;
        Ok(Self::new(local, socket, offloads, false))
    }

    /// Restores a stored socket that listens on the address, with the datagrams that have arrived since.
    fn restore(
        store: &OptionalStore,
        namespace: &Namespace,
        local: SocketAddr,
        offloads: Offloads,
    ) -> Option<Self> {
        store.restore(DescriptorSlot::of(&local), |kept| {
            let socket = check(kept, namespace, local).map_err(|error| error.to_string())?;
            Ok(Self::new(local, socket, offloads, true))
        })
    }

    fn new(local: SocketAddr, socket: UdpSocket, offloads: Offloads, is_restored: bool) -> Self {
        // A restored socket may have another setting.
        if let Err(error) = socket::set_gro(&socket, offloads.receive_bursts)
            && offloads.receive_bursts
        {
            tracing::info!(%error, "the kernel lacks UDP_GRO; receiving datagrams one by one");
        }
        if let Err(error) = socket::force_buffers(&socket, RECEIVE_BUFFER, SEND_BUFFER) {
            tracing::debug!(%error, "failed to enlarge the socket buffers");
        }
        let dropped = socket::drops(&socket).unwrap_or_default();
        Self { local, socket: Arc::new(socket), dropped, is_restored }
    }

    /// Returns the number of datagrams that it dropped since the last call.
    fn new_drops(&mut self) -> u64 {
        let Ok(now) = socket::drops(&self.socket) else { return 0 };
        let new = now.wrapping_sub(self.dropped);
        self.dropped = now;
        u64::from(new)
    }
}

/// Checks that a descriptor is an unconnected UDP socket on the expected address and namespace.
fn check(kept: OwnedFd, namespace: &Namespace, local: SocketAddr) -> io::Result<UdpSocket> {
    let unfit = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !socket::is_udp(kept.as_fd())? {
        return unfit("not a UDP socket".to_owned());
    }
    let socket = UdpSocket::from(kept);
    let bound = socket.local_addr()?;
    if (bound.ip(), bound.port()) != (local.ip(), local.port()) {
        return unfit(format!("bound to {bound}, not {local}"));
    }
    if let Ok(peer) = socket.peer_addr() {
        return unfit(format!("connected to {peer}"));
    }
    if Namespace::of_socket(&socket)? != *namespace {
        return unfit("in another network namespace".to_owned());
    }
    Ok(socket)
}

/// Returns the listen addresses, one for each address family of the network.
pub(crate) fn local_addresses(
    config: &NetworkConfig,
    external: &ExternalInterface,
    port: u16,
) -> Result<Vec<SocketAddr>, BackendError> {
    let v4 = config.ipv4.map(|_| (external.v4.map(IpAddr::V4), "IPv4"));
    let v6 = config.ipv6.map(|_| (external.v6.map(IpAddr::V6), "IPv6"));
    let address = |(address, family): (Option<IpAddr>, &str)| {
        let address = address.ok_or_else(|| {
            BackendError::Host(format!("interface {} has no {family} address", external.name))
        })?;
        Ok(SocketAddr::new(address, port))
    };
    v4.into_iter().chain(v6).map(address).collect()
}
