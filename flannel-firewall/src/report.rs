//! What a reconcile pass changed and why it failed; status for operators, and log lines.

use flannel_core::chain;
use flannel_netlink::{IpFamily, NftTable};
use serde::{Deserialize, Serialize};
use tracing::{debug, error, info, warn};

use crate::iptables::IptablesError;
use crate::nftables::NftablesError;
use crate::options::FirewallMode;

/// What one reconcile pass changed.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct FirewallReport {
    /// What happened to the masquerade and forward rules.
    pub rules: RuleChange,
    /// What happened to the tables that restrict the tunnel ports.
    pub tunnel_ports: RuleChange,
    /// What failed; it is retried.
    pub failures: Vec<FirewallError>,
    /// Rules of others that stop forwarded packets, each with a fix; `None` if this pass did not look for them.
    pub obstacles: Option<Vec<String>>,
}

/// What a reconcile pass did to a set of rules.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum RuleChange {
    /// They were correct, or there was no reason to look at them.
    #[default]
    Unchanged,
    /// They were written for a new desired state.
    Applied,
    /// Somebody else had changed them, and they were written again.
    Repaired,
}

impl RuleChange {
    pub(crate) fn new(changed: bool, is_new: bool) -> Self {
        match (changed, is_new) {
            (false, _) => Self::Unchanged,
            (true, true) => Self::Applied,
            (true, false) => Self::Repaired,
        }
    }
}

/// The state of the firewall rules, for operators.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FirewallStatus {
    /// The packet filter that holds the rules.
    pub mode: FirewallMode,
    /// Reconcile passes.
    pub passes: u64,
    /// Passes that found externally changed rules, and wrote them again.
    pub repairs: u64,
    /// Failures in all passes.
    pub failures: u64,
    /// What failed in the last pass.
    pub failed: Vec<String>,
    /// Rules of others that keep containers from reaching each other, each with a fix.
    pub obstacles: Vec<String>,
}

impl FirewallStatus {
    /// Takes in a report, and logs what is new in it.
    pub(crate) fn update(&mut self, report: &FirewallReport, mode: FirewallMode) {
        self.mode = mode;
        self.passes += 1;
        let changes = [report.rules, report.tunnel_ports];
        self.repairs += changes.iter().filter(|change| **change == RuleChange::Repaired).count() as u64;
        self.failures += report.failures.len() as u64;
        log_changes(report, mode);
        let failed: Vec<String> = report.failures.iter().map(describe).collect();
        for line in failed.iter().filter(|line| !self.failed.contains(line)) {
            error!("{line}; retrying");
        }
        if failed.is_empty() && !self.failed.is_empty() {
            info!("The firewall rules are in order again");
        }
        self.failed = failed;
        if let Some(obstacles) = &report.obstacles {
            for line in obstacles.iter().filter(|line| !self.obstacles.contains(line)) {
                warn!("Pods may not reach each other: {line}");
            }
            self.obstacles.clone_from(obstacles);
        }
    }
}

fn log_changes(report: &FirewallReport, mode: FirewallMode) {
    match (report.rules, mode) {
        (RuleChange::Unchanged, _) => {}
        (RuleChange::Applied, _) => info!("The firewall rules are in place"),
        (RuleChange::Repaired, FirewallMode::Iptables) => {
            info!("Some iptables rules are missing; deleting and recreating rules");
        }
        (RuleChange::Repaired, FirewallMode::Nftables) => {
            info!("Some nftables rules were changed; writing them again");
        }
    }
    match report.tunnel_ports {
        RuleChange::Unchanged => {}
        RuleChange::Applied => debug!("The tunnel ports are restricted to the current peers"),
        RuleChange::Repaired => info!("The table that restricts a tunnel port was changed; writing it again"),
    }
}

/// Describes a failure, in upstream's words where it has some.
fn describe(error: &FirewallError) -> String {
    let what = if !error.is_not_installed() {
        "Failed to setup firewall rules"
    } else if let FirewallError::Iptables(..) = error {
        "Failed to setup IPTables. iptables binary was not found"
    } else {
        "Failed to setup nftables. nft binary was not found"
    };
    format!("{what}: {}", chain(error))
}

/// Why rules are not as desired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// Rules in iptables.
    #[error("{0} rules in iptables")]
    Iptables(IpFamily, #[source] IptablesError),
    /// A table in nftables.
    #[error("table {0} in nftables")]
    Nftables(NftTable, #[source] NftablesError),
}

impl FirewallError {
    /// Returns whether the program that changes the rules is not installed.
    #[must_use]
    pub fn is_not_installed(&self) -> bool {
        match self {
            Self::Iptables(_, IptablesError::Program(error))
            | Self::Nftables(_, NftablesError::Program(error)) => error.is_not_installed(),
            Self::Iptables(..) | Self::Nftables(..) => false,
        }
    }
}
