//! How the agent that doctor looks at is run, and what doctor asks of its registry.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{ExternalInterface, NetworkConfig};
use flannel_firewall::RuleOptions;

use super::facts::{ConfigFact, RegistryFacts};

/// Chooses the external interface as the agent does; `None` stands for an unknown network configuration.
pub type ExternalLookup =
    Arc<dyn Fn(Option<&NetworkConfig>) -> Result<ExternalInterface, String> + Send + Sync>;

/// The options of a node agent, running or not.
#[derive(Clone)]
pub struct AgentProfile {
    /// The subnet file, which the container runtime reads.
    pub subnet_file: PathBuf,
    /// The cache of the network.
    pub cache: PathBuf,
    /// The file with the host ID.
    pub node_id: PathBuf,
    /// The status socket of the agent.
    pub status_socket: Option<PathBuf>,
    /// The firewall rules that the agent maintains.
    pub rules: RuleOptions,
    /// Whether the agent drops packets to the tunnel's port that are not from peers.
    pub restrict_tunnel_port: bool,
    /// Chooses the external interface as the agent does.
    pub external: ExternalLookup,
    /// The registry of the network.
    pub registry: Arc<dyn AgentRegistry>,
}

impl fmt::Debug for AgentProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentProfile")
            .field("subnet_file", &self.subnet_file)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl AgentProfile {
    /// Returns whether another agent manages the same network, judged by its options alone.
    pub(super) fn is_same_network(&self, other: &Self) -> bool {
        let others = other.registry.networks();
        self.registry.networks().iter().any(|network| others.contains(network))
    }
}

/// The registry of an agent, as doctor reads it.
#[async_trait]
pub trait AgentRegistry: fmt::Debug + Send + Sync {
    /// Returns the names of the network. Two agents with a common name manage the same network.
    fn networks(&self) -> Vec<String>;

    /// Returns the name of the network in the agent's cache.
    fn cache_key(&self) -> &str;

    /// Reads everything that the checks need.
    async fn read(&self) -> RegistryFacts;

    /// Reads only the network configuration.
    async fn config(&self) -> Option<NetworkConfig> {
        match self.read().await.config {
            ConfigFact::Valid(config) => Some(config),
            ConfigFact::BadOptions(..)
            | ConfigFact::Silent(..)
            | ConfigFact::Refused(..)
            | ConfigFact::Missing
            | ConfigFact::Invalid(_) => None,
        }
    }
}

/// Builds the shell commands that change a registry by hand, for the fixes of findings.
pub trait RegistryCommands: fmt::Debug + Send + Sync {
    /// Returns the command that removes a lease record, by its key below the prefix of all leases.
    fn remove_record(&self, key: &str) -> String;

    /// Returns the command that writes the network configuration.
    fn write_config(&self, text: &str) -> String;
}
