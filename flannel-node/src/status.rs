//! What a daemon tells: the network's [`NetworkStatus`], and beside its members what the daemon does around the network.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::{
    Condition, ConditionName, MeshStatus, NetworkStatus, NetworkView, ProbeSide, ProbeVerdict,
};
pub use flannel_firewall::FirewallStatus;
use serde::{Deserialize, Serialize};

use crate::probe::MeshNotes;

/// Everything that a daemon tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AgentStatus {
    /// The program.
    pub daemon: DaemonStatus,
    /// The firewall rules, once they were looked at.
    pub firewall: Option<FirewallStatus>,
    /// The network.
    #[serde(flatten)]
    pub network: NetworkStatus,
}

impl AgentStatus {
    /// Reads what [`Serialize`] writes.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the text.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        /// What is beside the status.
        #[derive(Deserialize)]
        #[serde(default)]
        #[derive(Default)]
        struct Extra {
            daemon: DaemonStatus,
            firewall: Option<FirewallStatus>,
        }
        // To take a large document apart twice costs less than to keep all its members for the second part.
        let Extra { daemon, firewall } = serde_json::from_slice(json)?;
        Ok(Self { daemon, firewall, network: serde_json::from_slice(json)? })
    }
}

/// The program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The file that tells the container runtime its subnet.
    pub subnet_file: String,
}

/// Where the parts of a report come from.
#[derive(Clone, Debug)]
pub struct StatusSource {
    daemon: DaemonStatus,
    network: NetworkView,
    beside: std::sync::Arc<DaemonState>,
}

/// What the daemon notes of its own doings.
#[derive(Debug, Default)]
pub struct DaemonState(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    firewall: Option<FirewallStatus>,
    /// What became of the subnet file, once it was to be written.
    subnet_file: Option<Result<(), String>>,
    /// What the probes in the background found, if there are any.
    mesh: Option<MeshNotes>,
}

impl DaemonState {
    /// Notes what the firewall did.
    pub fn firewall(&self, status: FirewallStatus) {
        self.notes().firewall = Some(status);
    }

    /// Notes whether the subnet file could be written.
    pub fn subnet_file(&self, written: Result<(), String>) {
        self.notes().subnet_file = Some(written);
    }

    /// Notes what probes found.
    pub fn mesh<T>(&self, note: impl FnOnce(&mut MeshNotes) -> T) -> T {
        note(self.notes().mesh.get_or_insert_default())
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusSource {
    pub fn new(
        network: NetworkView,
        beside: std::sync::Arc<DaemonState>,
        subnet_file: &std::path::Path,
    ) -> Self {
        let daemon = DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            subnet_file: subnet_file.display().to_string(),
        };
        Self { daemon, network, beside }
    }

    /// Tells everything.
    pub fn status(&self) -> AgentStatus {
        self.report(self.network.status())
    }

    /// Tells everything but the peers one by one.
    pub fn summary(&self) -> AgentStatus {
        self.report(self.network.summary())
    }

    fn report(&self, mut network: NetworkStatus) -> AgentStatus {
        let notes = self.beside.notes();
        network.conditions.extend(conditions(&notes, network.ready));
        if let Some(mesh) = &notes.mesh {
            add_mesh(&mut network, mesh, Instant::now());
        }
        let (daemon, firewall) = (self.daemon.clone(), notes.firewall.clone());
        AgentStatus { daemon, firewall, network }
    }
}

/// What is not in order of what the daemon does beside the network.
fn conditions(notes: &Notes, is_network_ready: bool) -> Vec<Condition> {
    let mut conditions = Vec::new();
    if let Some(first) = notes.firewall.as_ref().and_then(|firewall| firewall.failed.first()) {
        conditions.push(Condition::new(ConditionName::FirewallFailed, first));
    }
    match &notes.subnet_file {
        Some(Ok(())) => {}
        Some(Err(reason)) => conditions.push(Condition::new(ConditionName::SubnetFileFailed, reason)),
        None if is_network_ready => {
            conditions
                .push(Condition::new(ConditionName::Starting, "the subnet file is still to be written"));
        }
        None => {}
    }
    conditions
}

/// Adds what probes found to the state of the network: of each peer, of all together, and what is wrong by name.
fn add_mesh(network: &mut NetworkStatus, mesh: &MeshNotes, now: Instant) {
    for peer in network.peers.each.iter_mut().flatten() {
        peer.probe = mesh.peers.get(&peer.subnet).map(|history| history.show(now));
    }
    let mut status = MeshStatus::default();
    (status.round, status.sent, status.lost) = (mesh.round, mesh.sent, mesh.lost);
    // Every verdict is there, so that a graph of it does not break off.
    status.verdicts = ProbeVerdict::ALL.iter().map(|verdict| (*verdict, 0)).collect();
    let probes = || mesh.peers.iter().map(|(subnet, history)| (subnet, history.probe()));
    for (_, probe) in probes() {
        *status.verdicts.entry(probe.verdict).or_default() += 1;
        let inside = probe.paths.iter().filter(|way| way.side == ProbeSide::Inside);
        let longest = inside.filter_map(|way| way.round_trip_microseconds).max();
        status.longest_round_trip_microseconds = status.longest_round_trip_microseconds.max(longest);
    }
    for (verdict, name) in [
        (ProbeVerdict::TunnelBlocked, ConditionName::TunnelBlocked),
        (ProbeVerdict::Silent, ConditionName::PeersSilent),
        (ProbeVerdict::Lossy, ConditionName::PacketsLost),
        (ProbeVerdict::MtuSmall, ConditionName::PathMtuSmall),
    ] {
        if let Some((subnet, probe)) = probes().find(|(_, probe)| probe.verdict == verdict) {
            let (count, all) = (status.verdicts.get(&verdict).copied().unwrap_or_default(), mesh.peers.len());
            let which = crate::text::subnets(subnet);
            network
                .conditions
                .push(Condition::new(name, format!("{count} of {all} peers; {which}: {}", probe.detail)));
        }
    }
    network.peers.mesh = Some(status);
}

/// Tells whether the loop of the network runs, so that the service manager may be told that the daemon lives.
pub fn is_alive(network: &NetworkStatus) -> bool {
    !network.conditions.iter().any(|condition| condition.name == ConditionName::Stalled)
}

/// Says in one line how the network is, for the service manager.
pub fn in_one_line(network: &NetworkStatus) -> String {
    let peers = &network.peers;
    let mut line = match &network.lease {
        Some(lease) => format!("{}, ", crate::text::subnets(&lease.subnet)),
        None => String::new(),
    };
    line.push_str(&match peers.programmed == peers.known {
        true => format!("{} peers", peers.known),
        false => format!("{} of {} peers", peers.programmed, peers.known),
    });
    if let Some(first) = network.conditions.first() {
        let more = network.conditions.len() - 1;
        line.push_str(&format!("; {}: {}", first.name, shortened(&first.detail)));
        if more > 0 {
            line.push_str(&format!(" (and {more} more)"));
        }
    }
    line
}

/// Cuts a text that is too long for one line.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// How often the line is made anew.
pub const LINE_EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use flannel_firewall::FirewallMode;

    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let mut network = NetworkStatus::default();
        network.ready = true;
        network.peers.known = 2;
        let mut firewall = FirewallStatus::default();
        (firewall.mode, firewall.repairs) = (FirewallMode::Nftables, 2);
        let daemon = DaemonStatus { version: "1".to_owned(), pid: 7, subnet_file: "/a".to_owned() };
        let report = AgentStatus { daemon, firewall: Some(firewall), network };
        let json = serde_json::to_vec(&report).expect("written");
        assert_eq!(AgentStatus::read(&json).expect("read"), report);
        assert!(AgentStatus::read(b"7").is_err());
    }

    #[test]
    fn what_the_daemon_does_beside_the_network_counts_for_its_readiness() {
        let names = |notes: &Notes, ready| {
            conditions(notes, ready)
                .iter()
                .map(|condition| condition.name.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut notes = Notes::default();
        assert_eq!(names(&notes, false), "", "the network says itself that it is starting");
        assert_eq!(names(&notes, true), "starting");
        notes.subnet_file = Some(Err("the disk is full".to_owned()));
        assert_eq!(names(&notes, true), "subnet_file_failed");
        notes.subnet_file = Some(Ok(()));
        assert_eq!(names(&notes, true), "");
        let mut firewall = FirewallStatus::default();
        firewall.failed = vec!["no nft".to_owned()];
        notes.firewall = Some(firewall);
        assert_eq!(names(&notes, true), "firewall_failed");
    }

    #[test]
    fn the_line_for_the_service_manager_says_how_many_peers_there_are_and_what_is_wrong() {
        let mut network = NetworkStatus::default();
        (network.peers.known, network.peers.programmed) = (3, 3);
        assert_eq!(in_one_line(&network), "3 peers");
        network.peers.programmed = 2;
        network.conditions = vec![
            Condition::new(ConditionName::ObjectsFailed, "x".repeat(500)),
            Condition::new(ConditionName::BadRecords, "y"),
        ];
        let line = in_one_line(&network);
        assert!(
            line.starts_with("2 of 3 peers; objects_failed: xxx") && line.ends_with("… (and 1 more)"),
            "{line}"
        );
        assert!(line.chars().count() < 250);
    }
}
