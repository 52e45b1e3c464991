//! The responses of the other hosts.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flannel_core::Lease;
use flannel_netlink::Netlink;
use futures::StreamExt as _;
use futures::stream;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::doctor::facts::{HostResponse, Peer};

/// Longer than neighbour resolution takes to fail: three requests, a second apart (`mcast_solicit`, arp(7)).
const PATIENCE: Duration = Duration::from_secs(4);
/// The maximum number of concurrent requests.
const AT_ONCE: usize = 256;
/// The port of the discard service (RFC 863): a refused connection is a response, too.
const DISCARD: u16 = 9;

/// Requests a connection to the discard port of each host.
pub(super) async fn probe(leases: Vec<Arc<Lease>>) -> Vec<Peer> {
    let mut kernel = Netlink::open().ok();
    let mut peers = Vec::new();
    for lease in leases {
        let Some(public) = lease.attrs.public.addresses().next() else { continue };
        let leaves_by = kernel.as_mut().and_then(|kernel| kernel.route_to(public).ok()?.index);
        peers.push((public, Peer { lease, leaves_by, answer: HostResponse::Silent }));
    }
    let asked = stream::iter(peers).map(|(public, peer)| async move {
        let answer = answer(public).await;
        Peer { answer, ..peer }
    });
    asked.buffered(AT_ONCE).collect().await
}

async fn answer(address: IpAddr) -> HostResponse {
    match timeout(PATIENCE, TcpStream::connect(SocketAddr::new(address, DISCARD))).await {
        Ok(Ok(_)) => HostResponse::Alive,
        Ok(Err(error)) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => HostResponse::Alive,
            Some(libc::EHOSTUNREACH) => HostResponse::NoHost,
            _ => HostResponse::Silent,
        },
        Err(_) => HostResponse::Silent,
    }
}
