//! The registry and its contents.

use std::time::{Duration, SystemTime};

use flannel_core::NetworkConfig;
use ipnet::IpNet;
use serde_json::{Map, Value};

use super::overlap::overlap;
use crate::doctor::facts::{ConfigFact, Facts};
use crate::doctor::finding::{Cure, Fault, Finding};
use crate::doctor::gather::data_path;

pub(super) const OPTIONS: Fault = Fault::error("registry-options", "the daemon exits with these flags");
pub(super) const UNREACHABLE: Fault = Fault::error(
    "registry-unreachable",
    "traffic between known hosts continues, but the lease is not renewed, and hosts that join or leave are \
     missed",
);
pub(super) const REFUSES: Fault = Fault::error(
    "registry-refuses",
    "etcd responds and denies access: no lease is acquired or renewed, and no peer is known",
);
pub(super) const CONFIG_MISSING: Fault =
    Fault::error("config-missing", "the daemon waits for the network configuration");
pub(super) const CONFIG_INVALID: Fault =
    Fault::error("config-invalid", "no daemon of the network can start with this configuration");

pub(in crate::doctor) fn config(facts: &Facts) -> Vec<Finding> {
    let registry = &facts.registry;
    let write = |network: &str| {
        let backend = facts.backends.names().next().unwrap_or("BACKEND");
        let text = format!(r#"{{"Network":"{network}","Backend":{{"Type":"{backend}"}}}}"#);
        Cure::run([registry.commands.write_config(&text)])
    };
    vec![match &registry.config {
        ConfigFact::Valid(config) => {
            match facts.external.as_ref().map(|external| data_path(&facts.backends, config, external)) {
                Ok(Err(error)) => {
                    let network =
                        config.pools().next().map_or_else(String::new, |pool| pool.network().to_string());
                    let what = format!("{}: {}", registry.name, flannel_core::chain(&error));
                    CONFIG_INVALID.found(what, write(&network))
                }
                Ok(Ok(_)) | Err(_) => return Vec::new(),
            }
        }
        ConfigFact::BadOptions(why, cure) => OPTIONS.found(why.clone(), cure.clone()),
        ConfigFact::Silent(why, cure) => UNREACHABLE.found(why.clone(), cure.clone()),
        ConfigFact::Refused(why, cure) => REFUSES.found(why.clone(), cure.clone()),
        ConfigFact::Missing => {
            let what = format!("{} has no network configuration", registry.name);
            CONFIG_MISSING.found(what, write(&free_network(facts)))
        }
        ConfigFact::Invalid(why) => {
            let what = format!("{}: {why}", registry.name);
            CONFIG_INVALID.found(what, write(&free_network(facts)))
        }
    }]
}

/// Returns a network that overlaps nothing on this host.
pub(super) fn free_network(facts: &Facts) -> String {
    let is_free = |candidate: &&str| {
        let Ok(net) = candidate.parse::<IpNet>() else { return false };
        let routes = facts.routes.iter().map(|route| route.destination);
        let taken = facts.addresses.iter().map(|address| address.net).chain(routes);
        !taken.filter(|net| net.prefix_len() > 0).any(|other| overlap(&net, &other))
    };
    let candidates =
        ["10.5.0.0/16", "10.244.0.0/16", "172.30.0.0/16", "172.20.0.0/16", "10.100.0.0/16", "198.18.0.0/16"];
    candidates.into_iter().find(is_free).unwrap_or("10.5.0.0/16").to_owned()
}

/// Returns a configuration with another network.
pub(super) fn with_network(config: &NetworkConfig, network: &str) -> String {
    let mut members = members(config);
    for name in ["SubnetMin", "SubnetMax"] {
        members.retain(|other, _| !other.eq_ignore_ascii_case(name));
    }
    set(members, "Network", network.into())
}

/// Returns a configuration with another value of a member.
pub(super) fn with_member(config: &NetworkConfig, name: &str, value: Value) -> String {
    set(members(config), name, value)
}

fn members(config: &NetworkConfig) -> Map<String, Value> {
    serde_json::from_str(config.source.as_str()).unwrap_or_default()
}

/// Member names are case-insensitive, as in Go.
fn set(mut members: Map<String, Value>, name: &str, value: Value) -> String {
    members.retain(|other, _| !other.eq_ignore_ascii_case(name));
    members.insert(name.to_owned(), value);
    Value::Object(members).to_string()
}

pub(super) const BAD_RECORD: Fault = Fault::warning(
    "bad-record",
    "an invalid record is ignored: if it belongs to a host, that host is unreachable",
);
/// The maximum number of findings.
const MOST: usize = 10;

pub(in crate::doctor) fn bad_records(facts: &Facts) -> Vec<Finding> {
    let records = facts.registry.leases.iter().flat_map(|leases| &leases.bad);
    let found = |record: &flannel_core::BadRecord| {
        let remove = facts.registry.commands.remove_record(&record.key);
        BAD_RECORD.found(record.to_string(), Cure::run([remove]))
    };
    records.take(MOST).map(found).collect()
}

pub(super) const CLOCK: Fault = Fault::warning(
    "clock-skew",
    "TLS validates certificates by the clock, and the logs of hosts cannot be compared; one of the two clocks \
     is wrong",
);
/// More than the resolution of the header and the skew of synchronised clocks.
const TOLERATED: Duration = Duration::from_secs(10);

pub(in crate::doctor) fn clock(facts: &Facts) -> Vec<Finding> {
    let Some(clock) = &facts.registry.clock else { return Vec::new() };
    let since = |later: SystemTime, earlier: SystemTime| later.duration_since(earlier).unwrap_or_default();
    // The registry's clock was read between request and response.
    let (behind, ahead) = (since(clock.there, clock.answered), since(clock.asked, clock.there));
    let (difference, word) = if behind > ahead { (behind, "behind") } else { (ahead, "ahead of") };
    if difference <= TOLERATED {
        return Vec::new();
    }
    let seconds = difference.as_secs();
    let what = format!("the clock of this host is {seconds} s {word} that of {}", clock.member);
    let cure = Cure::run(["timedatectl set-ntp true"]);
    vec![CLOCK.found(what, cure)]
}
