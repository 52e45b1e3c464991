//! The text of `flanneld status`.

use flannel_core::{DeviceFacts, LeaseStatus, MeshStatus, NetworkStatus, ProbeVerdict, RegistryStatus};
use flannel_node::status::{AgentStatus, FirewallStatus};

use crate::format::{Cell, Paint, TextTable, list, plain, time};

/// The number of recent errors in the text; the JSON has all.
const ERRORS: usize = 5;

pub(super) fn page(report: &AgentStatus, paint: Paint) -> String {
    let network = &report.network;
    let mut table = TextTable::default();
    let mut row = |name: &str, value: String| {
        if !value.is_empty() {
            table.row([Cell::painted(name, |name| paint.faint(name)), Cell::new(value)]);
        }
    };
    row(
        "network",
        network.network.as_ref().map_or_else(String::new, |network| {
            let nftables = if network.nftables { ", rules in nftables" } else { "" };
            format!("{}, backend {}{nftables}", list(&network.networks), plain(&network.backend))
        }),
    );
    row("lease", network.lease.as_ref().map_or_else(|| "none yet".to_owned(), lease));
    row("registry", registry(&network.registry));
    row("interface", interface(network));
    network.devices.iter().for_each(|facts| row("device", device(facts)));
    row("peers", peers(network));
    row("probes", network.peers.mesh.as_ref().map_or_else(String::new, probes));
    row("kernel", kernel(network));
    row("firewall", report.firewall.as_ref().map_or_else(String::new, firewall));
    row(
        "dropped",
        network.traffic.as_ref().map_or_else(String::new, |traffic| {
            list(traffic.drops.iter().map(|(reason, packets)| format!("{packets} {}", plain(reason))))
        }),
    );
    let daemon = &report.daemon;
    row(
        "daemon",
        format!("flanneld {}, process {}, running for {}", daemon.version, daemon.pid, time(network.age)),
    );
    let mut text = table.write();
    text.push_str(&state(network, paint));
    text.push_str(&obstacles(report.firewall.as_ref(), paint));
    text.push_str(&recent_errors(network, paint));
    text
}

fn lease(lease: &LeaseStatus) -> String {
    let mut text = list(lease.subnet.nets());
    text.push_str(&format!(" of {}", lease.public));
    if lease.permanent {
        text.push_str(", a reservation");
    }
    if let Some(renewal) = lease.renewal_in.filter(|_| lease.lost.is_none()) {
        text.push_str(&format!(", renewed in {}", time(renewal)));
    }
    if let Some(end) = lease.ends_in {
        text.push_str(&format!(", expires in {} unless renewed", time(end)));
    }
    if lease.disputes > 0 {
        text.push_str(&format!(", disputes: {}", lease.disputes));
    }
    text
}

fn registry(registry: &RegistryStatus) -> String {
    let mut text = plain(&registry.name);
    if let Some(age) = registry.last_contact_age {
        text.push_str(&format!(", last contact {} ago", time(age)));
    }
    if let Some(revision) = registry.revision {
        text.push_str(&format!(", revision {revision}"));
    }
    text
}

fn interface(network: &NetworkStatus) -> String {
    let external = &network.external;
    let v4 = external.v4.map(|address| address.to_string());
    let own = list(v4.into_iter().chain(external.v6.map(|address| address.to_string())));
    let mut text = format!("{}, {own}, MTU {}", plain(&external.name), external.mtu);
    let public = &external.public;
    if (public.v4, public.v6) != (external.v4, external.v6) {
        text.push_str(&format!(", reached at {public}"));
    }
    text
}

fn device(device: &DeviceFacts) -> String {
    let mut text = format!("{}, {}", plain(&device.name), plain(&device.kind));
    if let Some(vni) = device.vni {
        text.push_str(&format!(", VNI {vni}"));
    }
    if let Some(port) = device.port {
        text.push_str(&format!(", port {port}"));
    }
    if let Some(mac) = &device.mac {
        text.push_str(&format!(", {}", plain(mac)));
    }
    text.push_str(&format!(", MTU {}", device.mtu));
    text
}

fn peers(network: &NetworkStatus) -> String {
    let peers = &network.peers;
    let mut text = format!("{} known, {} programmed", peers.known, peers.programmed);
    for (count, state) in
        [(peers.pending, "pending"), (peers.unreachable, "unreachable"), (peers.held, "held")]
    {
        if count > 0 {
            text.push_str(&format!(", {count} {state}"));
        }
    }
    text
}

/// The number of peers by verdict, the worst first.
fn probes(mesh: &MeshStatus) -> String {
    let verdicts = ProbeVerdict::ALL.iter().rev().filter_map(|verdict| {
        let peers = mesh.verdicts.get(verdict).filter(|peers| **peers > 0)?;
        Some(format!("{peers} {verdict}"))
    });
    let mut text = list(verdicts);
    if let Some(micros) = mesh.longest_round_trip_microseconds {
        text.push_str(&format!(", max {}.{:02}ms inside", micros / 1000, micros % 1000 / 10));
    }
    text + &format!(", every {}", time(mesh.round))
}

fn kernel(network: &NetworkStatus) -> String {
    let kernel = &network.kernel;
    let Some(age) = kernel.last_pass_age else { return "no pass yet".to_owned() };
    let mut text = format!(
        "{} passes, the last {} ago in {}, {} written, {} removed, {} repaired",
        kernel.passes,
        time(age),
        time(kernel.last_pass_took),
        kernel.written,
        kernel.removed,
        kernel.repaired
    );
    if let Some(repair) = &kernel.last_repair {
        text.push_str(&format!(" (last {} ago: {})", time(repair.age), plain(&repair.noticed)));
    }
    text
}

fn firewall(firewall: &FirewallStatus) -> String {
    let state = if firewall.failed.is_empty() { "in order" } else { "not in order" };
    format!("{}, {state}, {} passes, {} repairs", firewall.mode, firewall.passes, firewall.repairs)
}

/// The overall state and the conditions.
fn state(network: &NetworkStatus, paint: Paint) -> String {
    let state = match (network.is_in_order(), network.conditions.is_empty()) {
        (true, true) => paint.good("in order"),
        (true, false) => paint.warning("in order, with warnings"),
        (false, _) => paint.bad("not in order"),
    };
    let mut table = TextTable::default();
    for condition in &network.conditions {
        let name =
            Cell::painted(condition.name.as_str(), |name| match condition.name.is_against_readiness() {
                true => paint.bad(name),
                false => paint.warning(name),
            });
        table.row([Cell::new(""), name, Cell::new(plain(&condition.detail))]);
    }
    format!("\n{state}\n{}", table.write())
}

fn obstacles(firewall: Option<&FirewallStatus>, paint: Paint) -> String {
    let obstacles = firewall.map_or(&[][..], |firewall| &firewall.obstacles);
    if obstacles.is_empty() {
        return String::new();
    }
    let lines: String = obstacles.iter().map(|line| format!("  {}\n", plain(line))).collect();
    format!("\n{}\n{lines}", paint.warning("other firewall rules block traffic between containers"))
}

/// Recent errors, the newest first.
fn recent_errors(network: &NetworkStatus, paint: Paint) -> String {
    if network.errors.is_empty() {
        return String::new();
    }
    let mut table = TextTable::default();
    for error in network.errors.iter().rev().take(ERRORS) {
        let times = if error.times > 1 { format!("{} times", error.times) } else { String::new() };
        let ago = format!("{} ago", time(error.age));
        table.row([Cell::new(""), Cell::new(ago), Cell::new(times), Cell::new(plain(&error.what))]);
    }
    format!("\n{}\n{}", paint.faint("recent errors"), table.write())
}
