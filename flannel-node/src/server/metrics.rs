//! The metrics in Prometheus' text format.
//!
//! Their names are stable; `docs/status.md` lists them.

use std::fmt::Write as _;
use std::time::Duration;

use flannel_core::ConditionName;

use crate::status::AgentStatus;

/// The version of the format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes all metrics.
pub(super) fn metrics(status: &AgentStatus) -> String {
    let mut page = Page::default();
    let network = &status.network;
    page.gauge("flannel_build_info", "The version of the program; always 1.").with(
        "version",
        &status.daemon.version,
        1.0,
    );
    page.gauge("flannel_ready", "Whether the host is ready for containers, as /readyz reports.")
        .is(flag(network.is_in_order()));
    let mut conditions = page.gauge("flannel_condition", "Whether a condition is present.");
    for name in ConditionName::ALL {
        let is_there = network.conditions.iter().any(|condition| condition.name == name);
        conditions.with("name", name.as_str(), flag(is_there));
    }
    peers(&mut page, status);
    mesh(&mut page, status);
    lease(&mut page, status);
    registry(&mut page, status);
    kernel(&mut page, status);
    firewall(&mut page, status);
    traffic(&mut page, status);
    page.text
}

fn peers(page: &mut Page, status: &AgentStatus) {
    let peers = &status.network.peers;
    page.gauge("flannel_peers", "Other hosts of the network, by state.")
        .with("state", "programmed", count(peers.programmed))
        .with("state", "pending", count(peers.pending))
        .with("state", "unreachable", count(peers.unreachable));
    page.gauge("flannel_peers_held", "Peers that are kept although they left, many at once.")
        .is(count(peers.held));
}

fn mesh(page: &mut Page, status: &AgentStatus) {
    let Some(mesh) = &status.network.peers.mesh else { return };
    let mut peers = page.gauge("flannel_probed_peers", "Other hosts, by the verdict of the probes.");
    for (verdict, number) in &mesh.verdicts {
        peers.with("verdict", verdict.as_str(), count(*number));
    }
    page.counter("flannel_probes_sent_total", "Probes that were sent to other hosts.").is(mesh.sent as f64);
    page.counter("flannel_probes_lost_total", "Probes without an answer.").is(mesh.lost as f64);
    page.gauge("flannel_probe_round_seconds", "Duration of a round of probes to all other hosts.")
        .is(seconds(mesh.round));
    if let Some(longest) = mesh.longest_round_trip_microseconds {
        page.gauge("flannel_probe_longest_round_trip_seconds", "Longest round trip inside of the tunnel.")
            .is(longest as f64 / 1e6);
    }
}

fn lease(page: &mut Page, status: &AgentStatus) {
    let lease = status.network.lease.as_ref();
    let is_held = lease.is_some_and(|lease| lease.lost.is_none());
    page.gauge("flannel_lease_held", "Whether this host holds its lease.").is(flag(is_held));
    let disputes = lease.map_or(0, |lease| lease.disputes);
    page.counter("flannel_lease_disputes_total", "Changes of this host's record by others.")
        .is(disputes as f64);
    if let Some(renewal) = lease.and_then(|lease| lease.renewal_in) {
        page.gauge("flannel_lease_renewal_seconds", "Time until the next renewal of the lease.")
            .is(seconds(renewal));
    }
    if let Some(end) = lease.and_then(|lease| lease.ends_in) {
        page.gauge("flannel_lease_end_seconds", "Time until the lease expires unless it is renewed.")
            .is(seconds(end));
    }
}

fn registry(page: &mut Page, status: &AgentStatus) {
    let registry = &status.network.registry;
    page.gauge("flannel_registry_up", "Whether the registry is available.")
        .is(flag(registry.unavailable.is_none()));
    if let Some(age) = registry.last_contact_age {
        page.gauge(
            "flannel_registry_last_contact_age_seconds",
            "Time since the last contact with the registry.",
        )
        .is(seconds(age));
    }
    if let Some(revision) = registry.revision {
        page.gauge("flannel_registry_revision", "Latest revision received from the registry.")
            .is(revision.0 as f64);
    }
    page.gauge("flannel_bad_records", "Invalid records in the registry.")
        .is(count(status.network.bad_records.len()));
}

fn kernel(page: &mut Page, status: &AgentStatus) {
    let kernel = &status.network.kernel;
    page.counter("flannel_passes_total", "Passes that compared the host with its desired state.")
        .is(kernel.passes as f64);
    page.gauge("flannel_last_pass_duration_seconds", "Duration of the last pass.")
        .is(seconds(kernel.last_pass_took));
    if let Some(age) = kernel.last_pass_age {
        page.gauge("flannel_last_pass_age_seconds", "Time since the last pass.").is(seconds(age));
    }
    page.counter("flannel_objects_written_total", "Kernel objects that were written.")
        .is(kernel.written as f64);
    page.counter("flannel_objects_removed_total", "Kernel objects that were removed.")
        .is(kernel.removed as f64);
    page.counter(
        "flannel_objects_repaired_total",
        "Kernel objects that others changed and that were repaired.",
    )
    .is(kernel.repaired as f64);
    page.gauge("flannel_objects_failed", "Kernel objects that could not be written and are retried.")
        .is(count(kernel.failed.len()));
    if let Some(mtu) = status.network.mtu {
        page.gauge("flannel_mtu_bytes", "Largest packet that a container may send.").is(f64::from(mtu));
    }
}

fn firewall(page: &mut Page, status: &AgentStatus) {
    let Some(firewall) = &status.firewall else { return };
    page.counter("flannel_firewall_passes_total", "Passes over the firewall rules.")
        .is(firewall.passes as f64);
    page.counter("flannel_firewall_repairs_total", "Passes that repaired rules that others had changed.")
        .is(firewall.repairs as f64);
    page.counter("flannel_firewall_failures_total", "Failures to write firewall rules.")
        .is(firewall.failures as f64);
    page.gauge("flannel_firewall_in_order", "Whether the firewall rules are in place.")
        .is(flag(firewall.failed.is_empty()));
    page.gauge("flannel_firewall_obstacles", "Foreign rules that block packets between pods.")
        .is(count(firewall.obstacles.len()));
}

fn traffic(page: &mut Page, status: &AgentStatus) {
    let Some(traffic) = &status.network.traffic else { return };
    let mut drops =
        page.counter("flannel_dropped_packets_total", "Packets that the backend dropped, by reason.");
    for (reason, packets) in &traffic.drops {
        drops.with("reason", reason, *packets as f64);
    }
}

/// A page of metrics.
#[derive(Default)]
struct Page {
    text: String,
}

/// A metric of a page.
struct Metric<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) -> Metric<'_> {
        self.metric(name, "gauge", help)
    }

    fn counter(&mut self, name: &'static str, help: &str) -> Metric<'_> {
        self.metric(name, "counter", help)
    }

    fn metric(&mut self, name: &'static str, kind: &str, help: &str) -> Metric<'_> {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Metric { page: self, name }
    }
}

impl Metric<'_> {
    /// Sets the only value.
    fn is(self, value: f64) {
        let _ = writeln!(self.page.text, "{} {value}", self.name);
    }

    /// Sets the value for a label.
    fn with(&mut self, label: &str, of: &str, value: f64) -> &mut Self {
        let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = writeln!(self.page.text, "{}{{{label}=\"{of}\"}} {value}", self.name);
        self
    }
}

fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

fn count(n: usize) -> f64 {
    n as f64
}

fn seconds(time: Duration) -> f64 {
    // Rounded to milliseconds.
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A status with every member.
    fn full() -> AgentStatus {
        let status = include_bytes!("../../../flannel-core/src/status/golden.json");
        let mut firewall = flannel_firewall::FirewallStatus::default();
        (firewall.passes, firewall.repairs, firewall.failures) = (5, 2, 1);
        firewall.failed = vec!["no".to_owned()];
        AgentStatus { firewall: Some(firewall), ..AgentStatus::read(status).expect("a status") }
    }

    fn names(text: &str) -> BTreeSet<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    }

    /// Each metric as the documentation writes it: ``| `name{labels}` | type |``.
    fn described(text: &str) -> BTreeSet<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let row = |(name, kind): (&str, &str)| {
            let series = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
            // No label here has a comma or a brace in its value.
            let labels = series.and_then(|series| series.split('}').next()).map(|labels| {
                let names = labels.split(',').filter_map(|label| label.split('=').next());
                format!("{{{}}}", names.collect::<Vec<_>>().join(","))
            });
            format!("| `{name}{}` | {kind} |", labels.unwrap_or_default())
        };
        types.map(row).collect()
    }

    #[test]
    fn the_documentation_lists_every_metric_with_its_labels_and_type() {
        let docs = include_str!("../../../docs/status.md");
        let rows = docs.lines().filter(|line| line.starts_with("| `flannel_"));
        let first_two = |row: &str| row.split(" | ").take(2).collect::<Vec<_>>().join(" | ") + " |";
        let documented: BTreeSet<_> = rows.map(first_two).collect();
        assert_eq!(described(&metrics(&full())), documented);
    }

    #[test]
    fn the_documentation_lists_every_condition() {
        let docs = include_str!("../../../docs/status.md");
        let (_, table) = docs.split_once("\n| name | what it means |").expect("the conditions");
        let (against, others) = table.split_once("\n| | | |\n").expect("a row between the two");
        let others = others.split("\n\n").next().expect("the end of the table");
        let names = |rows: &str| -> BTreeSet<String> {
            rows.lines()
                .filter_map(|row| row.strip_prefix("| `")?.split('`').next())
                .map(str::to_owned)
                .collect()
        };
        let known = |is_against: bool| -> BTreeSet<String> {
            let all = ConditionName::ALL.iter().filter(|name| name.is_against_readiness() == is_against);
            all.map(ToString::to_string).collect()
        };
        assert_eq!((names(against), names(others)), (known(true), known(false)));
    }

    #[test]
    fn counters_end_in_total() {
        for row in described(&metrics(&full())) {
            let name = row.split(['`', '{']).nth(1).unwrap_or_default();
            assert_eq!(name.ends_with("_total"), row.ends_with("| counter |"), "{row}");
        }
    }

    #[test]
    fn every_line_is_of_the_format() {
        let text = metrics(&full());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            assert!(names(&text).contains(name), "{line}");
            assert!(labels.is_empty() || (labels.ends_with("\"}") && labels.contains("=\"")), "{line}");
        }
        for line in [
            "flannel_peers{state=\"programmed\"} 1",
            "flannel_condition{name=\"bad_records\"} 1",
            "flannel_condition{name=\"stalled\"} 0",
            "flannel_objects_failed 1",
            "flannel_probed_peers{verdict=\"tunnel_blocked\"} 1",
            "flannel_probe_longest_round_trip_seconds 0.0004",
            "flannel_firewall_repairs_total 2",
            "flannel_dropped_packets_total{reason=\"stranger\"} 3",
            "flannel_registry_last_contact_age_seconds 4.2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.gauge("a", "b").with("c", "d\"\\\n", 1.0);
        assert!(page.text.ends_with("a{c=\"d\\\"\\\\\\n\"} 1\n"), "{}", page.text);
    }
}
