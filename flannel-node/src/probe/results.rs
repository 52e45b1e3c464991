//! The results of a mesh, and their part of the status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::{Condition, ConditionName, MeshStatus, NetworkStatus, ProbeSide, ProbeVerdict, SubnetKey};

use super::history::History;
use crate::text::subnets;

/// The results of a mesh, which are updated while it runs. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct MeshResults(Arc<Mutex<MeshCounters>>);

#[derive(Debug, Default)]
pub(super) struct MeshCounters {
    pub(super) peers: BTreeMap<SubnetKey, History>,
    /// The duration of a round.
    pub(super) round: Duration,
    pub(super) sent: u64,
    pub(super) lost: u64,
}

impl MeshResults {
    pub(super) fn lock(&self) -> MutexGuard<'_, MeshCounters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the results to the status of the network: to each peer, in total, and as conditions.
    pub fn add_to(&self, network: &mut NetworkStatus, now: Instant) {
        let mesh = self.lock();
        for peer in network.peers.each.iter_mut().flatten() {
            peer.probe = mesh.peers.get(&peer.subnet).map(|history| history.show(now));
        }
        let mut status = MeshStatus::default();
        (status.round, status.sent, status.lost) = (mesh.round, mesh.sent, mesh.lost);
        // A metric that disappears at 0 would break graphs.
        status.verdicts = ProbeVerdict::ALL.iter().map(|verdict| (*verdict, 0)).collect();
        let probes = || mesh.peers.iter().map(|(subnet, history)| (subnet, history.probe()));
        for (_, probe) in probes() {
            *status.verdicts.entry(probe.verdict).or_default() += 1;
            let inside = probe.paths.iter().filter(|path| path.side == ProbeSide::Inside);
            let longest = inside.filter_map(|path| path.round_trip_microseconds).max();
            status.longest_round_trip_microseconds = status.longest_round_trip_microseconds.max(longest);
        }
        for (verdict, name) in [
            (ProbeVerdict::TunnelBlocked, ConditionName::TunnelBlocked),
            (ProbeVerdict::Silent, ConditionName::PeersSilent),
            (ProbeVerdict::Lossy, ConditionName::PacketsLost),
            (ProbeVerdict::MtuSmall, ConditionName::PathMtuSmall),
        ] {
            if let Some((subnet, probe)) = probes().find(|(_, probe)| probe.verdict == verdict) {
                let count = status.verdicts.get(&verdict).copied().unwrap_or_default();
                let (all, subnet) = (mesh.peers.len(), subnets(subnet));
                let detail = format!("{count} of {all} peers; {subnet}: {}", probe.detail);
                network.conditions.push(Condition::new(name, detail));
            }
        }
        network.peers.mesh = Some(status);
    }
}
