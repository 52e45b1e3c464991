//! The log lines for the events of a network. Lines that upstream logs, too, have its wording.

use std::time::Duration;

use flannel_core::{NetworkEvent, Phase, SubnetKey};
use tracing::{error, info, warn};

use crate::go_duration;

/// Logs an event.
pub(crate) fn log(event: &NetworkEvent) {
    let (severity, line) = line(event);
    match severity {
        Severity::Info => info!("{line}"),
        Severity::Warning => warn!("{line}"),
        Severity::Error => error!("{line}"),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Severity {
    Info,
    Warning,
    Error,
}

fn line(event: &NetworkEvent) -> (Severity, String) {
    use Severity::{Error, Info, Warning};
    match event {
        NetworkEvent::Waiting { phase, reason, retry_in } => {
            let step = match phase {
                Phase::Configuration => "Couldn't fetch network config".to_owned(),
                Phase::PreviousLease => "Couldn't read the leases".to_owned(),
                Phase::Lease => "Couldn't acquire a lease".to_owned(),
                phase => format!("Waiting while {phase}"),
            };
            (Error, format!("{step}: {reason}; retrying in {}", milliseconds(*retry_in)))
        }
        NetworkEvent::Configured(config) => {
            (Info, format!("Found network config - Backend type: {}", config.backend.name))
        }
        NetworkEvent::Reconfigured(config) => {
            (Info, format!("Network config changed - Backend type: {}", config.backend.name))
        }
        NetworkEvent::ConfigRefused(reason) => {
            (Error, format!("Network config changed but was rejected, keeping the previous one: {reason}"))
        }
        NetworkEvent::LeaseAcquired(lease) => (Info, format!("Lease acquired: {}", subnets(&lease.subnet))),
        NetworkEvent::RenewalIn(time) => {
            (Info, format!("Waiting for {} to renew lease", go_duration::format(*time)))
        }
        NetworkEvent::LeasePermanent => (Info, "Lease is a reservation and needs no renewal".to_owned()),
        NetworkEvent::LeaseRenewed(ttl) => {
            (Info, format!("Lease renewed, new expiration in {}", go_duration::format(*ttl)))
        }
        NetworkEvent::RenewalFailed { reason, retry_in } => {
            let retry_in = milliseconds(*retry_in);
            (Error, format!("Error renewing lease (trying again in {retry_in}): {reason}"))
        }
        NetworkEvent::LeaseDisputed(what) => (Warning, format!("{what}; restoring it")),
        NetworkEvent::LeaseLost(reason) => {
            (Error, format!("Lease has been revoked: {reason}; acquiring it again while traffic continues"))
        }
        NetworkEvent::ExternalChanged(external) => {
            let addresses = [external.v4.map(|v4| v4.to_string()), external.v6.map(|v6| v6.to_string())];
            let addresses = addresses.into_iter().flatten().collect::<Vec<_>>().join(" and ");
            let (name, mtu) = (&external.name, external.mtu);
            (Info, format!("External interface changed: using {name} with address {addresses}, MTU {mtu}"))
        }
        NetworkEvent::ExternalLost(reason) => (Warning, format!("External interface lost: {reason}")),
        NetworkEvent::LeasePublished(lease) => {
            (Info, format!("Lease published: {} via {}", subnets(&lease.subnet), lease.attrs.public))
        }
        NetworkEvent::MtuChanged(mtu) => {
            (Info, format!("Network MTU changed to {mtu}; running containers keep theirs"))
        }
        NetworkEvent::Ready => (Info, "All peers are known and programmed".to_owned()),
        NetworkEvent::PeersFromCache(reason) => {
            (Warning, format!("Running with cached peers until the registry responds: {reason}"))
        }
        NetworkEvent::PeersConfirmed => {
            (Info, "Registry has listed all peers; cached peers dropped".to_owned())
        }
        NetworkEvent::PeersHeld { peers, at_most } => {
            let at_most = go_duration::format(*at_most);
            (
                Warning,
                format!(
                    "{peers} peers disappeared at once; keeping them for up to {at_most} (suspected registry fault)"
                ),
            )
        }
        NetworkEvent::HoldEnded { gone: 0 } => {
            (Info, "All peers that had disappeared at once are back".to_owned())
        }
        NetworkEvent::HoldEnded { gone } => {
            (Warning, format!("{gone} peers that had disappeared at once did not return; removing them"))
        }
        NetworkEvent::PeerJoined(lease) => {
            (Info, format!("Subnet added: {} via {}", subnets(&lease.subnet), lease.attrs.public))
        }
        NetworkEvent::PeerChanged(lease) => {
            (Info, format!("Subnet changed: {} via {}", subnets(&lease.subnet), lease.attrs.public))
        }
        NetworkEvent::PeerLeft(subnet) => (Info, format!("Subnet removed: {}", subnets(subnet))),
        NetworkEvent::PeerHeld(lease) => {
            (Info, format!("Subnet held: {} via {}", subnets(&lease.subnet), lease.attrs.public))
        }
        NetworkEvent::BadRecord(record) => (Warning, format!("Ignoring bad subnet node: {record}")),
        NetworkEvent::Repaired { objects, noticed } => {
            (Info, format!("Repaired {objects} objects, detected by {noticed}"))
        }
        NetworkEvent::ObjectFailed(failure) => {
            (Error, format!("{}: {}; retrying", failure.object, failure.reason))
        }
        NetworkEvent::PeerUnreachable(failure) => (Warning, failure.to_string()),
        NetworkEvent::RegistryUnavailable(reason) => (
            Error,
            format!("Watch of subnet leases failed: {reason}; traffic continues with the known leases"),
        ),
        NetworkEvent::RegistryAvailable => (Info, "Watch of subnet leases resumed".to_owned()),
        NetworkEvent::Missed(events) => (Warning, format!("Event log overflowed; {events} events dropped")),
        event => (Info, format!("{event:?}")),
    }
}

/// Logs that the daemon watches the leases, with the wording of upstream's backends.
pub(crate) fn watching(backend: &str) {
    if backend == "vxlan" {
        info!("watching for new subnet leases");
    } else {
        info!("Watching for new subnet leases");
    }
}

fn milliseconds(time: Duration) -> String {
    go_duration::format(Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

/// Formats subnets as upstream does: one, or both separated by a blank.
pub(crate) fn subnets(key: &SubnetKey) -> String {
    let nets: Vec<String> = key.nets().map(|net| net.to_string()).collect();
    nets.join(" ")
}

#[cfg(test)]
mod tests;
