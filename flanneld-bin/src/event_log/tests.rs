use std::net::Ipv4Addr;
use std::sync::Arc;

use flannel_core::{
    BadRecord, ExternalInterface, Lease, LeaseAttrs, NetworkConfig, ObjectFailure, PeerFailure,
};

use super::*;

const PAGE: &str = include_str!("../../../docs/events.md");

/// One of each event, in the order of their declaration; two if the log line has two forms.
fn samples() -> Vec<NetworkEvent> {
    let config = Arc::new(NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).expect("valid"));
    let subnet: SubnetKey = "10.5.1.0-24".parse().expect("valid");
    let public = Ipv4Addr::new(192, 0, 2, 1);
    let lease = Lease::new(subnet, LeaseAttrs::new(public.into()));
    let (second, text) = (Duration::from_secs(1), || "why".to_owned());
    let waiting = |phase| NetworkEvent::Waiting { phase, reason: text(), retry_in: second };
    vec![
        waiting(Phase::Configuration),
        waiting(Phase::PreviousLease),
        waiting(Phase::Lease),
        NetworkEvent::Configured(Arc::clone(&config)),
        NetworkEvent::Reconfigured(config),
        NetworkEvent::ConfigRefused(text()),
        NetworkEvent::LeaseAcquired(lease.clone()),
        NetworkEvent::RenewalIn(second),
        NetworkEvent::LeasePermanent,
        NetworkEvent::LeaseRenewed(second),
        NetworkEvent::RenewalFailed { reason: text(), retry_in: second },
        NetworkEvent::LeaseDisputed(text()),
        NetworkEvent::LeaseLost(text()),
        NetworkEvent::ExternalChanged(ExternalInterface::new("eth0", 2, 1500, public)),
        NetworkEvent::ExternalLost(text()),
        NetworkEvent::LeasePublished(lease.clone()),
        NetworkEvent::MtuChanged(1450),
        NetworkEvent::Ready,
        NetworkEvent::PeersFromCache(text()),
        NetworkEvent::PeersConfirmed,
        NetworkEvent::PeersHeld { peers: 2, at_most: second },
        NetworkEvent::HoldEnded { gone: 0 },
        NetworkEvent::HoldEnded { gone: 2 },
        NetworkEvent::PeerJoined(Arc::new(lease.clone())),
        NetworkEvent::PeerChanged(Arc::new(lease.clone())),
        NetworkEvent::PeerLeft(subnet),
        NetworkEvent::PeerHeld(Arc::new(lease.clone())),
        NetworkEvent::BadRecord(BadRecord::new("x", None, "why")),
        NetworkEvent::Repaired { objects: 2, noticed: text() },
        NetworkEvent::ObjectFailed(ObjectFailure::new("route", "why")),
        NetworkEvent::PeerUnreachable(PeerFailure::new(subnet, "why")),
        NetworkEvent::RegistryUnavailable(text()),
        NetworkEvent::RegistryAvailable,
        NetworkEvent::Missed(2),
    ]
}

/// The rows of the page: the event's name, and the log lines with their severity.
fn rows() -> Vec<(String, String)> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let name = cells[0].trim_matches('`').split([' ', '(']).next().expect("a name");
        (name.to_owned(), cells[2].to_owned())
    };
    rows.map(row).collect()
}

/// The name of an event's variant.
fn name(event: &NetworkEvent) -> String {
    let debug = format!("{event:?}");
    debug.split([' ', '(']).next().expect("a name").to_owned()
}

/// Whether `line` is `pattern`, in which `...` stands for any text.
fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("...");
    let mut rest = line.strip_prefix(parts.next().expect("one part"));
    for part in parts {
        rest = rest.and_then(|rest| if part.is_empty() { Some("") } else { Some(rest.split_once(part)?.1) });
    }
    rest == Some("")
}

#[test]
fn the_page_lists_the_events_in_order_with_their_log_lines() {
    let mut names: Vec<String> = samples().iter().map(name).collect();
    names.dedup();
    let rows = rows();
    assert_eq!(rows.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
    for event in samples() {
        let (severity, line) = line(&event);
        let (_, log) = rows.iter().find(|(row, _)| *row == name(&event)).expect("listed above");
        let letter = match severity {
            Severity::Info => "I",
            Severity::Warning => "W",
            Severity::Error => "E",
        };
        let mut listed = log.split('`').skip(1).step_by(2);
        assert!(listed.any(|pattern| matches(pattern, &line)), "{line:?} is not listed: {log}");
        assert!(log.split('`').step_by(2).any(|text| text.contains(letter)), "{letter} {line:?}: {log}");
    }
}
