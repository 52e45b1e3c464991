//! What happens to the network, told in the log in the words that people and scripts look for.

use std::time::Duration;

use flannel_core::{ExternalInterface, NetworkEvent, Phase, SubnetKey};
use tracing::{error, info, warn};

use crate::go_duration;

/// Writes the line for an event.
pub(crate) fn tell(event: &NetworkEvent) {
    match event {
        NetworkEvent::Waiting { phase, reason, retry_in } => waiting(*phase, reason, &pause(*retry_in)),
        NetworkEvent::Configured(config) => {
            info!("Found network config - Backend type: {}", config.backend.name)
        }
        NetworkEvent::Reconfigured(config) => {
            info!(
                "The network config changed, running by it from now on - Backend type: {}",
                config.backend.name
            );
        }
        NetworkEvent::ConfigRefused(reason) => {
            error!("The network config changed and is not used, the one before goes on: {reason}");
        }
        NetworkEvent::LeaseAcquired(lease) => info!("Holding the lease {}", subnets(&lease.subnet)),
        NetworkEvent::RenewalIn(time) => info!("Waiting for {} to renew lease", go_duration::format(*time)),
        NetworkEvent::LeasePermanent => info!("The lease is a reservation, which is not renewed"),
        NetworkEvent::LeaseRenewed(ttl) => {
            info!("Lease renewed, new expiration in {}", go_duration::format(*ttl))
        }
        NetworkEvent::RenewalFailed { reason, retry_in } => {
            error!("Error renewing lease (trying again in {}): {reason}", pause(*retry_in));
        }
        NetworkEvent::LeaseDisputed(what) => warn!("{what}; it is put right"),
        NetworkEvent::LeaseLost(reason) => {
            error!("Lease has been revoked, asking for it again while traffic goes on: {reason}");
        }
        NetworkEvent::ExternalChanged(external) => moved(external),
        NetworkEvent::ExternalLost(reason) => warn!("External interface lost: {reason}"),
        NetworkEvent::LeasePublished(lease) => {
            info!("Lease ({}) says {} from now on", subnets(&lease.subnet), lease.attrs.public);
        }
        NetworkEvent::MtuChanged(mtu) => {
            info!("The MTU of the network is {mtu} now; containers that are running keep theirs");
        }
        NetworkEvent::Ready => info!("All peers are known and reachable as far as this host can tell"),
        NetworkEvent::PeersFromCache(reason) => {
            warn!("Running on what is remembered of the last run until the registry answers: {reason}");
        }
        NetworkEvent::PeersConfirmed => {
            info!("The registry told all peers, nothing is taken from memory any more")
        }
        NetworkEvent::PeersHeld { peers, at_most } => warn!(
            "{peers} peers left at once, which is doubted; they are kept for up to {}",
            go_duration::format(*at_most)
        ),
        NetworkEvent::HoldEnded { gone: 0 } => info!("The peers that had left at once are back"),
        NetworkEvent::HoldEnded { gone } => warn!("{gone} peers that left at once did not come back"),
        NetworkEvent::PeerJoined(lease) => {
            info!("Subnet added: {} via {}", subnets(&lease.subnet), lease.attrs.public);
        }
        NetworkEvent::PeerChanged(lease) => {
            info!("Subnet changed: {} via {}", subnets(&lease.subnet), lease.attrs.public);
        }
        NetworkEvent::PeerLeft(subnet) => info!("Subnet removed: {}", subnets(subnet)),
        NetworkEvent::BadRecord(record) => warn!("Ignoring bad subnet node: {record}"),
        NetworkEvent::Repaired { objects, noticed } => {
            info!("Repaired {objects} objects; noticed by: {noticed}")
        }
        NetworkEvent::ObjectFailed(failure) => {
            error!("{}: {}; it is tried again", failure.object, failure.reason);
        }
        NetworkEvent::PeerUnreachable(failure) => warn!("{failure}"),
        NetworkEvent::RegistryUnavailable(reason) => {
            error!("Watch of subnet leases: {reason}; traffic goes on with the leases known so far");
        }
        NetworkEvent::RegistryAvailable => info!("Watch of subnet leases: the registry answers again"),
        NetworkEvent::Missed(events) => warn!("{events} events are missing above: they came too fast"),
        event => info!("{event:?}"),
    }
}

/// Says that the peers are followed, as flannel's backends do.
pub(crate) fn watching(backend: &str) {
    if backend == "vxlan" {
        info!("watching for new subnet leases");
    } else {
        info!("Watching for new subnet leases");
    }
}

/// Says it in the words that are said about the interface at the start.
fn moved(external: &ExternalInterface) {
    let ExternalInterface { name, mtu, v4, v6, .. } = external;
    if let Some(address) = v4 {
        info!("Using interface with name {name} and address {address} from now on, MTU {mtu}");
    }
    if let Some(address) = v6 {
        info!("Using interface with name {name} and v6 address {address} from now on, MTU {mtu}");
    }
}

fn waiting(phase: Phase, reason: &str, pause: &str) {
    match phase {
        Phase::Configuration => error!("Couldn't fetch network config: {reason}; trying again in {pause}"),
        Phase::PreviousLease => error!("Couldn't read the leases: {reason}; trying again in {pause}"),
        Phase::Lease => error!("Couldn't acquire a lease: {reason}; trying again in {pause}"),
        other => error!("Waiting while {other}: {reason}; trying again in {pause}"),
    }
}

/// Writes a pause; nobody needs it to the nanosecond.
fn pause(time: Duration) -> String {
    go_duration::format(Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// Writes subnets as flannel does: the one, or both separated by a blank.
pub(crate) fn subnets(key: &SubnetKey) -> String {
    let nets: Vec<String> = key.nets().map(|net| net.to_string()).collect();
    nets.join(" ")
}
