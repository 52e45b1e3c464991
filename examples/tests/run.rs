//! Runs each example and checks its output.

use std::path::Path;
use std::process::Command;

/// Runs an example and expects these lines in its output, in this order.
fn prints(name: &str, expected: &[&str]) {
    let test = std::env::current_exe().expect("a test has a path");
    let program =
        test.ancestors().nth(2).expect("a test is below the profile directory").join("examples").join(name);
    assert!(program.exists(), "{name} is missing; build it: cargo build -p flannel-examples --examples");
    let output = Command::new(&program).output().expect("an example runs");
    let printed =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{name} failed:\n{printed}");
    let mut lines = printed.lines();
    for expected in expected {
        assert!(
            lines.any(|line| line.contains(expected)),
            "{name} did not print {expected:?} in this order:\n{printed}"
        );
    }
}

#[test]
fn a_program_embeds_three_hosts_and_receives_their_events() {
    prints(
        "embedded",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "host-2-pod-1 reaches host-3-pod-1",
            "host-3-pod-1 reaches host-1-pod-1",
            "host-1 is in order: true, with 2 peers",
            "everything removed",
        ],
    );
    // The order of events is not deterministic.
    prints("embedded", &["host-1 is ready"]);
}

#[test]
fn hosts_lease_subnets_from_a_custom_registry() {
    let store = "the store of this example holds";
    let (two, none) = (format!("{store} 2 leases"), format!("{store} 0 leases"));
    prints("own_registry", &["host-1 leased", "host-1-pod-1 reaches host-2-pod-1", &two, &none]);
}

#[test]
fn a_network_without_a_registry_carries_traffic_and_repairs_drift() {
    prints(
        "data_plane",
        &[
            r#"lease of red: 10.5.1.0-24 {"PublicIP":"192.168.64.1""#,
            "host-1-pod-1 reaches host-2-pod-1 at 10.5.2.2",
            "without blue: Remove route 10.5.2.0/24",
            "the route to blue was deleted and restored",
            "host-1-pod-1 reaches host-2-pod-1 at 10.5.2.2",
            "blue left, and its route was removed",
        ],
    );
}

#[test]
fn two_networks_with_different_vnis_carry_traffic_in_one_process() {
    prints(
        "two_networks",
        &[
            "green: host-2 has 10.5.2.0-24 on flannel.1",
            "amber: host-4 has 10.5.2.0-24 on flannel.2",
            "green stopped",
        ],
    );
    prints("two_networks", &["green: 20000000 bytes from host-1-pod-1 to 10.5.2.2"]);
    prints(
        "two_networks",
        &["amber: 20000000 bytes from host-3-pod-1 to 10.5.2.2", "green stopped", "amber is in order: true"],
    );
}

#[test]
fn a_custom_backend_carries_traffic_and_repairs_drift() {
    prints(
        "custom_backend",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "a route was deleted and restored: true",
            "remaining routes: 0",
        ],
    );
}

#[test]
fn a_privileged_helper_keeps_networks_running_after_its_unprivileged_agent_died() {
    prints(
        "privileged_helper",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "the agent was killed",
            "host-2-pod-1 reaches host-1-pod-1",
            "in order without the agent: true",
            "the agent runs with Uid: 65534 65534 65534 65534 CapEff: 0000000000000000",
        ],
    );
}

#[test]
fn a_node_agent_has_firewall_rules_a_subnet_file_metrics_and_probes() {
    prints(
        "node_agent",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "host-3-pod-1 reaches host-1-pod-1",
            "flannel_ready 1",
            "flannel_firewall_in_order 1",
            r#"flannel_probed_peers{verdict="reachable"} 2"#,
            "everything removed",
        ],
    );
}

#[test]
fn a_node_agent_with_static_peers_survives_its_control_plane() {
    prints(
        "agent_static_peers",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "host-2-pod-1 reaches host-1-pod-1",
            "flannel_registry_up 0",
            "everything removed",
        ],
    );
}

#[test]
fn a_node_agent_leases_its_subnet_from_a_custom_registry() {
    prints("agent_custom_registry", &["host-1-pod-1 reaches host-2-pod-1", "leases: 2", "leases: 0"]);
}

#[test]
fn a_node_agent_opens_a_custom_backend_by_name() {
    prints(
        "agent_custom_backend",
        &["host-1-pod-1 reaches host-2-pod-1", "flannel_firewall_in_order 1", "everything removed"],
    );
}

#[test]
fn the_node_agents_are_short() {
    let agents = Path::new(env!("CARGO_MANIFEST_DIR")).join("agents");
    for (file, limit) in [
        ("node_agent.rs", 99),
        ("static_peers.rs", 150),
        ("custom_registry.rs", 150),
        ("custom_backend.rs", 150),
    ] {
        let lines = std::fs::read_to_string(agents.join(file)).expect(file).lines().count();
        assert!(lines <= limit, "{file} has {lines} lines");
    }
}

#[test]
fn every_example_for_embedders_is_shorter_than_a_hundred_lines() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["embedded.rs", "data_plane.rs", "two_networks.rs", "privileged_helper.rs"];
    let parts = ["own_registry/main.rs", "own_registry/registry.rs", "own_registry/store.rs"];
    let more = ["custom_backend/main.rs", "custom_backend/plain.rs", "custom_backend/routes.rs"];
    for file in files.into_iter().chain(parts).chain(more) {
        let lines = std::fs::read_to_string(here.join(file)).expect(file).lines().count();
        assert!(lines < 100, "{file} has {lines} lines");
    }
}
