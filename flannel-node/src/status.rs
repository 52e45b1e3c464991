//! The status of an agent: that of its network, and of what it does around the network.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "probes")]
use std::time::Instant;

use flannel_core::{Condition, ConditionName, NetworkStatus, NetworkView};
pub use flannel_firewall::FirewallStatus;
use serde::{Deserialize, Serialize};

#[cfg(feature = "probes")]
use crate::probe::MeshResults;
use crate::text::subnets;

/// The status of an agent. Its JSON is documented in `docs/status.md`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AgentStatus {
    /// The process.
    pub daemon: DaemonStatus,
    /// The firewall rules; `None` before the first pass.
    pub firewall: Option<FirewallStatus>,
    /// The network, with the agent's own conditions.
    #[serde(flatten)]
    pub network: NetworkStatus,
}

impl AgentStatus {
    /// Parses the JSON that [`Serialize`] writes.
    ///
    /// # Errors
    ///
    /// The error of the JSON parser.
    pub fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        /// The members beside the network's.
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct AgentMembers {
            daemon: DaemonStatus,
            firewall: Option<FirewallStatus>,
        }
        // Parsing a large document twice costs less than buffering it, as `flatten` would.
        let AgentMembers { daemon, firewall } = serde_json::from_slice(json)?;
        Ok(Self { daemon, firewall, network: serde_json::from_slice(json)? })
    }
}

/// The process of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// The version of the program.
    pub version: String,
    /// The process ID.
    pub pid: u32,
    /// The path of the subnet file; empty if no file is written.
    pub subnet_file: String,
}

/// The state of the agent's own work, which its parts update and [`StatusSource`] reads. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AgentState(Arc<Mutex<AgentWork>>);

#[derive(Debug, Default)]
struct AgentWork {
    firewall: Option<FirewallStatus>,
    /// The result of the last write of the subnet file.
    subnet_file: Option<Result<(), String>>,
    #[cfg(feature = "probes")]
    mesh: Option<MeshResults>,
}

impl AgentState {
    /// Records the state of the firewall rules after a pass.
    pub fn set_firewall(&self, status: FirewallStatus) {
        self.lock().firewall = Some(status);
    }

    /// Records whether the subnet file was written, or why not. Until then the agent isn't ready.
    pub fn set_subnet_file(&self, result: Result<(), String>) {
        self.lock().subnet_file = Some(result);
    }

    /// Adds the results of a mesh of probes.
    #[cfg(feature = "probes")]
    pub fn set_mesh(&self, results: MeshResults) {
        self.lock().mesh = Some(results);
    }

    fn lock(&self) -> MutexGuard<'_, AgentWork> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the status of an agent together from its network and its state.
#[derive(Clone, Debug)]
pub struct StatusSource {
    daemon: DaemonStatus,
    network: NetworkView,
    state: AgentState,
}

impl StatusSource {
    /// Reads the status of this process from a network and the agent's own state.
    #[must_use]
    pub fn new(network: NetworkView, state: AgentState) -> Self {
        let daemon = DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            subnet_file: String::new(),
        };
        Self { daemon, network, state }
    }

    /// Sets the path of the subnet file.
    #[must_use]
    pub fn with_subnet_file(mut self, path: &Path) -> Self {
        self.daemon.subnet_file = path.display().to_string();
        self
    }

    /// Returns the status with every peer.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        self.add_agent(self.network.status())
    }

    /// Returns the status without the single peers.
    #[must_use]
    pub fn summary(&self) -> AgentStatus {
        self.add_agent(self.network.summary())
    }

    fn add_agent(&self, mut network: NetworkStatus) -> AgentStatus {
        let work = self.state.lock();
        network.conditions.extend(conditions(&work, network.ready));
        #[cfg(feature = "probes")]
        if let Some(mesh) = &work.mesh {
            mesh.add_to(&mut network, Instant::now());
        }
        let (daemon, firewall) = (self.daemon.clone(), work.firewall.clone());
        AgentStatus { daemon, firewall, network }
    }
}

/// Returns the faults of the agent's own work.
fn conditions(work: &AgentWork, is_network_ready: bool) -> Vec<Condition> {
    let mut conditions = Vec::new();
    if let Some(first) = work.firewall.as_ref().and_then(|firewall| firewall.failed.first()) {
        conditions.push(Condition::new(ConditionName::FirewallFailed, first));
    }
    match &work.subnet_file {
        Some(Ok(())) => {}
        Some(Err(reason)) => conditions.push(Condition::new(ConditionName::SubnetFileFailed, reason)),
        None if is_network_ready => {
            conditions.push(Condition::new(ConditionName::Starting, "the subnet file is not written yet"));
        }
        None => {}
    }
    conditions
}

/// Returns whether the network's loop runs.
pub(crate) fn is_alive(network: &NetworkStatus) -> bool {
    !network.conditions.iter().any(|condition| condition.name == ConditionName::Stalled)
}

/// Describes a network in one line: the lease, the number of peers, and the first fault.
pub(crate) fn one_line(network: &NetworkStatus) -> String {
    let peers = &network.peers;
    let mut line = match &network.lease {
        Some(lease) => format!("{}, ", subnets(&lease.subnet)),
        None => String::new(),
    };
    line.push_str(&match peers.programmed == peers.known {
        true => format!("{} peers", peers.known),
        false => format!("{} of {} peers", peers.programmed, peers.known),
    });
    if let Some(first) = network.conditions.first() {
        let more = network.conditions.len() - 1;
        line.push_str(&format!("; {}: {}", first.name, shorten(&first.detail)));
        if more > 0 {
            line.push_str(&format!(" (and {more} more)"));
        }
    }
    line
}

/// Truncates a long text.
fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use flannel_firewall::FirewallMode;

    use super::*;

    #[test]
    fn a_status_survives_its_json() {
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
    fn the_agents_own_faults_are_conditions() {
        let names = |work: &AgentWork, ready| {
            conditions(work, ready)
                .iter()
                .map(|condition| condition.name.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut work = AgentWork::default();
        assert_eq!(names(&work, false), "", "the network reports that it is starting");
        assert_eq!(names(&work, true), "starting");
        work.subnet_file = Some(Err("the disk is full".to_owned()));
        assert_eq!(names(&work, true), "subnet_file_failed");
        work.subnet_file = Some(Ok(()));
        assert_eq!(names(&work, true), "");
        let mut firewall = FirewallStatus::default();
        firewall.failed = vec!["no nft".to_owned()];
        work.firewall = Some(firewall);
        assert_eq!(names(&work, true), "firewall_failed");
    }

    #[test]
    fn the_line_has_the_number_of_peers_and_the_first_fault() {
        let mut network = NetworkStatus::default();
        (network.peers.known, network.peers.programmed) = (3, 3);
        assert_eq!(one_line(&network), "3 peers");
        network.peers.programmed = 2;
        network.conditions = vec![
            Condition::new(ConditionName::ObjectsFailed, "x".repeat(500)),
            Condition::new(ConditionName::BadRecords, "y"),
        ];
        let line = one_line(&network);
        assert!(
            line.starts_with("2 of 3 peers; objects_failed: xxx") && line.ends_with("… (and 1 more)"),
            "{line}"
        );
        assert!(line.chars().count() < 250);
    }
}
