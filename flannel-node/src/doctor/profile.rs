//! The options of the examined agent, and its registry.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{ExternalInterface, NetworkConfig};
use flannel_firewall::RuleOptions;

use super::facts::{ConfigFact, RegistryFacts};

/// Selects the external interface for a network, or without knowing the configuration.
pub type ExternalLookup =
    Arc<dyn Fn(Option<&NetworkConfig>) -> Result<ExternalInterface, String> + Send + Sync>;

/// The options of a node agent, for doctor.
#[derive(Clone)]
pub struct AgentProfile {
    /// The subnet file.
    pub subnet_file: PathBuf,
    /// The cache file of the network.
    pub cache: PathBuf,
    /// The file with the ID of the host.
    pub node_id: PathBuf,
    /// The status socket.
    pub status_socket: Option<PathBuf>,
    /// The firewall rules that the agent maintains.
    pub rules: RuleOptions,
    /// Whether only peers may send to the tunnel's port.
    pub restrict_tunnel_port: bool,
    /// Selects the external interface as the agent does.
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
    /// Returns whether another agent uses the same network, by the options alone.
    pub(super) fn is_same_network(&self, other: &Self) -> bool {
        let others = other.registry.networks();
        self.registry.networks().iter().any(|network| others.contains(network))
    }
}

/// The registry of an agent, for doctor.
#[async_trait]
pub trait AgentRegistry: fmt::Debug + Send + Sync {
    /// Returns names of the network: two agents with a common name use the same network.
    fn networks(&self) -> Vec<String>;

    /// Returns the name of the network in the agent's cache.
    fn cache_key(&self) -> &str;

    /// Reads the facts.
    async fn read(&self) -> RegistryFacts;

    /// Reads only the configuration of the network.
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

/// Writes shell commands that change a registry by hand.
pub trait RegistryCommands: fmt::Debug + Send + Sync {
    /// Returns a command that removes the record of a lease, given its key.
    fn remove_record(&self, key: &str) -> String;

    /// Returns a command that writes the network configuration.
    fn write_config(&self, text: &str) -> String;
}
