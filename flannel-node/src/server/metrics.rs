//! The metrics, in Prometheus' text format. Pure.
//!
//! Their names are for alerts and graphs, and stay: `docs/status.md` lists them, and a test compares the two.

use std::fmt::Write as _;
use std::time::Duration;

use flannel_core::ConditionName;

use crate::status::AgentStatus;

/// The version of the format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes all metrics.
pub(super) fn metrics(report: &AgentStatus) -> String {
    let mut page = Page::default();
    let network = &report.network;
    page.gauge("flannel_build_info", "Which program this is; always 1.").with(
        "version",
        &report.daemon.version,
        1.0,
    );
    page.gauge("flannel_ready", "Whether lease, peers and kernel are in order: what /readyz answers.")
        .is(flag(network.is_in_order()));
    let mut conditions =
        page.gauge("flannel_condition", "Whether something is not as it should be, by name.");
    for name in ConditionName::ALL {
        let is_there = network.conditions.iter().any(|condition| condition.name == name);
        conditions.with("name", name.as_str(), flag(is_there));
    }
    peers(&mut page, report);
    mesh(&mut page, report);
    lease(&mut page, report);
    registry(&mut page, report);
    kernel(&mut page, report);
    firewall(&mut page, report);
    traffic(&mut page, report);
    page.text
}

fn peers(page: &mut Page, report: &AgentStatus) {
    let peers = &report.network.peers;
    page.gauge("flannel_peers", "Other hosts of the network, by how far they are reached.")
        .with("state", "programmed", count(peers.programmed))
        .with("state", "pending", count(peers.pending))
        .with("state", "unreachable", count(peers.unreachable));
    page.gauge("flannel_peers_held", "Peers that are kept though they are said to have left, many at once.")
        .is(count(peers.held));
}

fn mesh(page: &mut Page, report: &AgentStatus) {
    let Some(mesh) = &report.network.peers.mesh else { return };
    let mut peers =
        page.gauge("flannel_probed_peers", "Other hosts by how probes found that they are reached.");
    for (verdict, number) in &mesh.verdicts {
        peers.with("verdict", verdict.as_str(), count(*number));
    }
    page.counter("flannel_probes_sent_total", "Questions that were sent to other hosts.")
        .is(mesh.sent as f64);
    page.counter("flannel_probes_lost_total", "Questions that were not answered.").is(mesh.lost as f64);
    page.gauge("flannel_probe_round_seconds", "How long it takes until each other host was probed once.")
        .is(seconds(mesh.round));
    if let Some(longest) = mesh.longest_round_trip_microseconds {
        page.gauge("flannel_probe_longest_round_trip_seconds", "The longest round trip inside the tunnel.")
            .is(longest as f64 / 1e6);
    }
}

fn lease(page: &mut Page, report: &AgentStatus) {
    let lease = report.network.lease.as_ref();
    let is_held = lease.is_some_and(|lease| lease.lost.is_none());
    page.gauge("flannel_lease_held", "Whether this host holds its lease.").is(flag(is_held));
    let disputes = lease.map_or(0, |lease| lease.disputes);
    page.counter("flannel_lease_disputes_total", "How often somebody else wrote this host's record.")
        .is(disputes as f64);
    if let Some(renewal) = lease.and_then(|lease| lease.renewal_in) {
        page.gauge("flannel_lease_renewal_seconds", "Time until the next renewal of the lease.")
            .is(seconds(renewal));
    }
    if let Some(end) = lease.and_then(|lease| lease.ends_in) {
        page.gauge("flannel_lease_end_seconds", "Time until the lease ends if it is not renewed.")
            .is(seconds(end));
    }
}

fn registry(page: &mut Page, report: &AgentStatus) {
    let registry = &report.network.registry;
    page.gauge("flannel_registry_up", "Whether the registry is heard.")
        .is(flag(registry.unavailable.is_none()));
    if let Some(age) = registry.last_contact_age {
        page.gauge(
            "flannel_registry_last_contact_age_seconds",
            "Time since the registry gave its last word.",
        )
        .is(seconds(age));
    }
    if let Some(revision) = registry.revision {
        page.gauge("flannel_registry_revision", "The revision up to which the registry was heard.")
            .is(revision.0 as f64);
    }
    page.gauge("flannel_bad_records", "Records in the registry that cannot be read.")
        .is(count(report.network.bad_records.len()));
}

fn kernel(page: &mut Page, report: &AgentStatus) {
    let kernel = &report.network.kernel;
    page.counter("flannel_passes_total", "How often the host was compared with what it should be.")
        .is(kernel.passes as f64);
    page.gauge("flannel_last_pass_duration_seconds", "How long the last comparison took.")
        .is(seconds(kernel.last_pass_took));
    if let Some(age) = kernel.last_pass_age {
        page.gauge("flannel_last_pass_age_seconds", "Time since the last comparison.").is(seconds(age));
    }
    page.counter("flannel_objects_written_total", "Objects of the host that were written.")
        .is(kernel.written as f64);
    page.counter("flannel_objects_removed_total", "Objects of the host that were removed.")
        .is(kernel.removed as f64);
    page.counter(
        "flannel_objects_repaired_total",
        "Objects that somebody else had changed and were put right.",
    )
    .is(kernel.repaired as f64);
    page.gauge("flannel_objects_failed", "Objects that are not as they should be and are tried again.")
        .is(count(kernel.failed.len()));
    if let Some(mtu) = report.network.mtu {
        page.gauge("flannel_mtu_bytes", "The largest packet that a container may send.").is(f64::from(mtu));
    }
}

fn firewall(page: &mut Page, report: &AgentStatus) {
    let Some(firewall) = &report.firewall else { return };
    page.counter("flannel_firewall_passes_total", "How often there was a reason to look at the firewall.")
        .is(firewall.passes as f64);
    page.counter("flannel_firewall_repairs_total", "How often somebody had changed rules of ours.")
        .is(firewall.repairs as f64);
    page.counter("flannel_firewall_failures_total", "How many times something at the firewall failed.")
        .is(firewall.failures as f64);
    page.gauge("flannel_firewall_in_order", "Whether the firewall rules are as they should be.")
        .is(flag(firewall.failed.is_empty()));
    page.gauge("flannel_firewall_obstacles", "Rules of others that keep pods from reaching each other.")
        .is(count(firewall.obstacles.len()));
}

fn traffic(page: &mut Page, report: &AgentStatus) {
    let Some(traffic) = &report.network.traffic else { return };
    let mut drops =
        page.counter("flannel_dropped_packets_total", "Packets that the backend dropped, by reason.");
    for (reason, packets) in &traffic.drops {
        drops.with("reason", reason, *packets as f64);
    }
}

/// The text, as far as it is written.
#[derive(Default)]
struct Page {
    text: String,
}

/// One metric that is being written.
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
    /// Gives it its one value.
    fn is(self, value: f64) {
        let _ = writeln!(self.page.text, "{} {value}", self.name);
    }

    /// Gives it a value for a label.
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
    // To the millisecond: more would be noise.
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A report in which everything is said.
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
    fn the_documentation_lists_exactly_the_metrics_that_there_are_with_their_labels_and_types() {
        let docs = include_str!("../../../docs/status.md");
        let rows = docs.lines().filter(|line| line.starts_with("| `flannel_"));
        let first_two = |row: &str| row.split(" | ").take(2).collect::<Vec<_>>().join(" | ") + " |";
        let documented: BTreeSet<_> = rows.map(first_two).collect();
        assert_eq!(described(&metrics(&full())), documented);
    }

    #[test]
    fn the_documentation_lists_exactly_the_conditions_first_those_against_readiness() {
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
    fn the_name_of_a_metric_says_what_it_counts_and_in_which_unit() {
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
    fn a_label_cannot_break_out() {
        let mut page = Page::default();
        page.gauge("a", "b").with("c", "d\"\\\n", 1.0);
        assert!(page.text.ends_with("a{c=\"d\\\"\\\\\\n\"} 1\n"), "{}", page.text);
    }
}
