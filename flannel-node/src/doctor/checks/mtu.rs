//! Whether packets that one part lets in fit through the next.

use crate::doctor::facts::{Facts, NetworkFacts};
use crate::doctor::finding::{Cure, Fault, Finding, quoted};

pub(super) const DEVICE: Fault = Fault::error(
    "device-mtu",
    "packets larger than the MTU of the external interface are lost: small ones pass, and transfers hang",
);

pub(in crate::doctor) fn device(facts: &Facts) -> Vec<Finding> {
    let (Ok(external), Some(network)) = (&facts.external, &facts.network) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for wanted in &network.devices {
        let Some(link) = facts.link(&wanted.name).filter(|link| link.mtu != wanted.mtu) else {
            continue;
        };
        let what = format!(
            "{} has an MTU of {} and should have {}, as {} has {}",
            link.name, link.mtu, wanted.mtu, external.name, external.mtu
        );
        let set = format!("ip link set {} mtu {}", quoted(&link.name), wanted.mtu);
        found.push(DEVICE.found(what, Cure::run([set])));
    }
    found
}

pub(super) const BRIDGE: Fault = Fault::warning(
    "bridge-mtu",
    "pods send packets that are too large for the tunnel: those that may not be fragmented are lost, and \
     transfers hang where the ICMP errors are filtered; running pods keep their MTU",
);

/// Checks the bridge of the pods and its ports.
pub(in crate::doctor) fn bridge(facts: &Facts) -> Vec<Finding> {
    let Some(NetworkFacts { mtu, .. }) = &facts.network else { return Vec::new() };
    let mut found = Vec::new();
    for bridge in facts.pod_bridges() {
        let is_part = |index: u32, master: Option<u32>| index == bridge.index || master == Some(bridge.index);
        let parts = facts.links.iter().filter(|link| is_part(link.index, link.master));
        let large: Vec<&str> = parts.filter(|link| link.mtu > *mtu).map(|link| link.name.as_str()).collect();
        if large.is_empty() {
            continue;
        }
        let what = format!(
            "{} {} an MTU larger than the {mtu} of the network",
            large.join(", "),
            if large.len() == 1 { "has" } else { "have" }
        );
        let set = large.iter().map(|name| format!("ip link set {} mtu {mtu}", quoted(name)));
        found.push(BRIDGE.found(what, Cure::run(set)));
    }
    found
}

pub(super) const SUBNET_FILE: Fault = Fault::error(
    "subnet-file",
    "the container runtime reads the addresses and the MTU of pods from it: new pods get wrong ones, or none",
);

/// Checks the contents of `subnet.env`. A missing file is a fault only while the daemon, which writes it, runs.
pub(in crate::doctor) fn subnet_file(facts: &Facts) -> Vec<Finding> {
    let Some(wanted) = facts.network.as_ref().and_then(|network| network.subnet_file.as_ref()) else {
        return Vec::new();
    };
    let path = facts.options.subnet_file.display().to_string();
    let what = match &facts.cached.subnet_file {
        None if facts.is_running() => format!("{path} does not exist"),
        None => return Vec::new(),
        Some(text) => match wanted.lines().find(|line| !text.lines().any(|other| other == *line)) {
            Some(line) => format!("{path} lacks the line {line}"),
            None => return Vec::new(),
        },
    };
    let lines: Vec<String> = wanted.lines().map(quoted).collect();
    let directory = facts.options.subnet_file.parent().map(|parent| quoted(&parent.to_string_lossy()));
    let make = directory.filter(|parent| parent != "''").map(|parent| format!("mkdir -p {parent} && "));
    let write = format!("{}printf '%s\\n' {} > {}", make.unwrap_or_default(), lines.join(" "), quoted(&path));
    vec![SUBNET_FILE.found(what, Cure::run([write]))]
}
