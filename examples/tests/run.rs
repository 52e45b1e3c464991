//! Each example, run as a person would run it.

use std::path::Path;
use std::process::Command;

/// Runs an example, and expects these lines among those that it prints, in this order.
fn shows(name: &str, expected: &[&str]) {
    let test = std::env::current_exe().expect("a test has a path");
    let program = test.ancestors().nth(2).expect("it lies below the profile").join("examples").join(name);
    assert!(program.exists(), "{name} is missing; build it: cargo build -p flannel-examples --examples");
    let output = Command::new(&program).output().expect("an example runs");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{name} failed:\n{said}");
    let mut lines = said.lines();
    for expected in expected {
        assert!(
            lines.any(|line| line.contains(expected)),
            "{name} did not say {expected:?} in its place:\n{said}"
        );
    }
}

#[test]
fn a_program_is_a_cluster_of_three_hosts_and_hears_what_happens_on_them() {
    shows(
        "embedded",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "host-2-pod-1 reaches host-3-pod-1",
            "host-3-pod-1 reaches host-1-pod-1",
            "host-1 is in order: true, with 2 peers",
            "everything is removed",
        ],
    );
    // Events come when they come.
    shows("embedded", &["host-1 is ready"]);
}

#[test]
fn hosts_lease_their_subnets_from_a_store_of_ones_own() {
    let store = "the store of this example holds";
    let (two, none) = (format!("{store} 2 leases"), format!("{store} 0 leases"));
    shows("own_registry", &["host-1 leased", "host-1-pod-1 reaches host-2-pod-1", &two, &none]);
}

#[test]
fn a_data_plane_without_a_registry_carries_traffic_and_heals() {
    shows(
        "data_plane",
        &[
            r#"red says 10.5.1.0-24 {"PublicIP":"192.168.64.1""#,
            "host-1-pod-1 reaches host-2-pod-1 at 10.5.2.2",
            "without blue: Remove route 10.5.2.0/24",
            "the route to blue was deleted, and is back",
            "host-1-pod-1 reaches host-2-pod-1 at 10.5.2.2",
            "blue left, and its route with it",
        ],
    );
}

#[test]
fn two_networks_in_one_process_with_two_vnis_carry_traffic_side_by_side() {
    shows(
        "two_networks",
        &[
            "green: host-2 has 10.5.2.0-24 on flannel.1",
            "amber: host-4 has 10.5.2.0-24 on flannel.2",
            "green is gone",
        ],
    );
    shows("two_networks", &["green: 20000000 bytes from host-1-pod-1 to 10.5.2.2"]);
    shows(
        "two_networks",
        &["amber: 20000000 bytes from host-3-pod-1 to 10.5.2.2", "green is gone", "amber is in order: true"],
    );
}

#[test]
fn a_backend_of_ones_own_carries_traffic_and_heals() {
    shows(
        "custom_backend",
        &[
            "host-1-pod-1 reaches host-2-pod-1",
            "a route was deleted, and is back: true",
            "routes that are left: 0",
        ],
    );
}

#[test]
fn an_agent_without_rights_has_its_networks_made_true_by_a_helper_and_may_die() {
    shows(
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
