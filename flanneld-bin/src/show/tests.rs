//! Text and JSON of a status in which every member is set.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::format::Paint;
use flannel_firewall::FirewallMode;
use flannel_node::status::{DaemonStatus, FirewallStatus};

const STATUS: &[u8] = include_bytes!("../../../flannel-core/src/status/golden.json");

fn report() -> AgentStatus {
    let mut report = AgentStatus::read(STATUS).expect("a status");
    report.daemon = DaemonStatus {
        version: "0.1.0".to_owned(),
        pid: 4711,
        subnet_file: "/run/flannel/subnet.env".to_owned(),
    };
    let mut firewall = FirewallStatus::default();
    firewall.mode = FirewallMode::Nftables;
    (firewall.passes, firewall.repairs, firewall.failures) = (5, 2, 1);
    firewall.failed = vec!["table ip flannel-ipv4 in nftables: not permitted".to_owned()];
    firewall.obstacles = vec!["iptables -P FORWARD is DROP: iptables -P FORWARD ACCEPT".to_owned()];
    report.firewall = Some(firewall);
    report
}

fn peers() -> Vec<flannel_core::PeerStatus> {
    report().network.peers.each.expect("each")
}

#[test]
fn the_status_text_is_complete_and_aligned() {
    let page = status::page(&report(), Paint(false));
    assert_eq!(page, include_str!("status.txt"), "actual:\n{page}");
}

#[test]
fn the_peers_text_has_a_line_for_each_peer() {
    let page = peers::page(&peers(), Paint(false));
    assert_eq!(page, include_str!("peers.txt"), "actual:\n{page}");
    assert_eq!(peers::page(&[], Paint(false)), "no peers\n");
}

/// Other programs rely on these members.
#[test]
fn the_status_json_is_stable() {
    let text = json(&report(), false);
    assert_eq!(text, include_str!("status.json"), "actual:\n{text}");
    assert_eq!(json(&report(), true).lines().count(), 1);
}

#[test]
fn the_peers_json_equals_that_part_of_the_status_json() {
    let status: Value = serde_json::from_str(include_str!("status.json")).expect("json");
    let each: Value = serde_json::from_str(&json(&peers(), false)).expect("json");
    assert_eq!(each, status["peers"]["each"]);
}

#[test]
fn the_page_names_every_member_of_the_json() {
    fn members(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.keys().cloned());
                object.values().for_each(|value| members(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| members(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    let docs = include_str!("../../../docs/status.md");
    let mut found = Vec::new();
    let mut value = serde_json::to_value(report()).expect("a value");
    // The metric documents the reasons.
    value["traffic"]["drops"] = Value::Null;
    members(&value, &mut found);
    assert!(found.len() > 80, "{found:?}");
    for member in found {
        let named = [format!("`{member}`"), format!("`{member}:"), format!(".{member}`")];
        assert!(named.iter().any(|name| docs.contains(name)), "{member} is not documented");
    }
}

/// The members in the table of the page, as paths: ``| `a.b`, `.c` |`` lists `a.b` and `a.c`.
fn listed(page: &str) -> BTreeSet<String> {
    let (_, part) = page.split_once("\n## The JSON\n").expect("the part about the JSON");
    let (table, _) = part.split_once("`flanneld peers -json`").expect("its end");
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
    let paths = |cell: &str| {
        let names: Vec<_> = cell.trim().trim_end_matches('`').split("`, `").map(str::to_owned).collect();
        let within = names[0].rsplit_once('.').map_or("", |(within, _)| within).to_owned();
        names
            .into_iter()
            .map(move |name| if name.starts_with('.') { format!("{within}{name}") } else { name })
    };
    cells.flat_map(paths).collect()
}

#[test]
fn the_page_lists_exactly_the_members_of_the_json() {
    let value = serde_json::to_value(report()).expect("a value");
    let mut actual = BTreeSet::new();
    for (name, value) in value.as_object().expect("an object") {
        match value.as_object() {
            Some(members) => actual.extend(members.keys().map(|member| format!("{name}.{member}"))),
            None => drop(actual.insert(name.clone())),
        }
    }
    let mut listed = listed(include_str!("../../../docs/status.md"));
    // A row for an object as a whole says when it is `null`.
    listed.retain(|path| !actual.iter().any(|member| member.starts_with(&format!("{path}."))));
    assert_eq!(listed, actual);
}

#[test]
fn colours_do_not_change_the_text() {
    let strip = |text: &str| {
        let mut parts = text.split('\u{1b}');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
    };
    let coloured = status::page(&report(), Paint(true));
    assert!(coloured.contains("\u{1b}[1;31mnot in order\u{1b}[0m"), "{coloured}");
    assert_eq!(strip(&coloured), status::page(&report(), Paint(false)));
    assert_eq!(strip(&peers::page(&peers(), Paint(true))), peers::page(&peers(), Paint(false)));
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let mut report = report();
    let evil = "\u{1b}]0;evil\u{7}\r\n";
    report.network.conditions[0].detail = evil.to_owned();
    report.network.registry.name = evil.to_owned();
    report.network.errors[0].what = evil.to_owned();
    let mut peers = peers();
    peers[0].backend = evil.to_owned();
    peers[1].reason = Some(evil.to_owned());
    for page in [status::page(&report, Paint(false)), peers::page(&peers, Paint(false))] {
        assert!(!page.contains(['\u{1b}', '\u{7}', '\r']), "{page:?}");
    }
}

#[test]
fn durations_and_amounts_are_short() {
    use crate::format::{bytes, time};
    for (seconds, text) in
        [(0, "0s"), (59, "59s"), (61, "1m1s"), (3_600, "1h0m"), (86_399, "23h59m"), (90_000, "1d1h")]
    {
        assert_eq!(time(Duration::from_secs(seconds)), text);
    }
    assert_eq!(time(Duration::from_millis(3)), "3ms");
    assert_eq!(time(Duration::from_millis(9_500)), "9s");
    let amounts = [0, 1023, 1024, 1536 * 1024, u64::MAX].map(bytes);
    assert_eq!(amounts, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "16777216.0 TiB"]);
}
