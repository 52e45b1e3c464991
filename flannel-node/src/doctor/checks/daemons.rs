//! The running agents.

use flannel_netlink::Link;

use crate::doctor::facts::{Facts, RunningAgent};
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const NOT_RUNNING: Fault = Fault::warning(
    "daemon-not-running",
    "traffic continues for a while, but changes of other hosts are missed, nothing is repaired, and the lease \
     expires",
);

/// A host without a lease needs no agent.
pub(in crate::doctor) fn not_running(facts: &Facts) -> Vec<Finding> {
    let has_lease = facts.own().is_some() || facts.cached.subnet_file.is_some();
    if facts.is_running() || !has_lease {
        return Vec::new();
    }
    let what = match facts.own() {
        Some(own) => format!("this host has the lease {}, and no flanneld runs for it", own.subnet),
        None => format!("{} exists, and no flanneld runs for it", facts.options.subnet_file.display()),
    };
    vec![NOT_RUNNING.found(what, start())]
}

/// Returns the cure that starts the agent.
pub(super) fn start() -> Cure {
    Cure::run(["systemctl start flanneld"]).lasting(["systemctl enable flanneld"])
}

pub(super) const OTHER_DAEMON: Fault = Fault::error(
    "other-daemon",
    "two daemons with the same device undo each other's changes, and peers come and go",
);

pub(in crate::doctor) fn others(facts: &Facts) -> Vec<Finding> {
    let devices: Vec<&str> = facts
        .network
        .iter()
        .flat_map(|network| network.devices.iter().map(|device| device.name.as_str()))
        .collect();
    let shared = |daemon: &RunningAgent| -> Option<String> {
        let Ok(options) = &daemon.options else {
            let device = facts.devices().next().map(|link: &Link| &link.name);
            return Some(device.cloned().unwrap_or_else(|| "the device of the network".to_owned()));
        };
        let device = daemon.devices.iter().find(|device| devices.contains(&device.as_str()));
        let whole = options
            .is_same_network(&facts.options)
            .then(|| devices.first().map_or_else(|| "this network".to_owned(), ToString::to_string));
        device.cloned().or(whole)
    };
    let found = |daemon: &RunningAgent| {
        let device = shared(daemon)?;
        let what = match &facts.own_daemon {
            Some(own) => format!(
                "process {} ({}) works on {device}, as process {} does",
                daemon.pid, daemon.command, own.pid
            ),
            None => format!("process {} ({}) works on {device}", daemon.pid, daemon.command),
        };
        let cure = match &daemon.unit {
            Some(unit) => {
                Cure::run([format!("systemctl stop {unit}")]).lasting([format!("systemctl disable {unit}")])
            }
            None => Cure::run([format!("kill {}", daemon.pid)]),
        };
        Some(OTHER_DAEMON.found(what, cure))
    };
    facts.daemons.iter().filter_map(found).collect()
}
