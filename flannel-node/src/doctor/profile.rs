//! How the agent that doctor looks at is run, and what doctor asks of its registry.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_core::{ExternalInterface, NetworkConfig};
use flannel_firewall::RuleOptions;

use super::facts::{ConfigFact, RegistryFacts};

/// Chooses the external interface of a network, or of one whose configuration is not known.
pub type ChooseExternal =
    Arc<dyn Fn(Option<&NetworkConfig>) -> Result<ExternalInterface, String> + Send + Sync>;

/// How a node agent is run, or would be.
#[derive(Clone)]
pub struct AgentProfile {
    /// The file that tells the container runtime its subnet.
    pub subnet_file: PathBuf,
    /// The file in which the network is cached.
    pub cache: PathBuf,
    /// The file that holds the id of the host.
    pub node_id: PathBuf,
    /// The socket at which the agent serves its status.
    pub status_socket: Option<PathBuf>,
    /// The firewall rules that the agent keeps.
    pub rules: RuleOptions,
    /// Whether the agent closes the tunnel's port to everybody but peers.
    pub restrict_tunnel_port: bool,
    /// Chooses the external interface as the agent does.
    pub external: ChooseExternal,
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
    /// Tells whether another agent works on the same network, as far as can be told without asking.
    pub(super) fn is_same_network(&self, other: &Self) -> bool {
        let others = other.registry.networks();
        self.registry.networks().iter().any(|network| others.contains(network))
    }
}

/// The registry of an agent, as doctor looks at it.
#[async_trait]
pub trait AgentRegistry: fmt::Debug + Send + Sync {
    /// Returns the names by which the network is known: two agents that share one work on the same network.
    fn networks(&self) -> Vec<String>;

    /// Returns the name of the network in the agent's cache.
    fn cache_key(&self) -> &str;

    /// Reads everything that doctor judges by.
    async fn read(&self) -> RegistryFacts;

    /// Reads the configuration of the network alone.
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

/// Writes the shell commands that change a registry by hand, for the cures of findings.
pub trait RegistryCommands: fmt::Debug + Send + Sync {
    /// Removes the record of a lease, by its key below the one that holds all.
    fn remove_record(&self, key: &str) -> String;

    /// Writes the network configuration.
    fn write_config(&self, text: &str) -> String;
}
