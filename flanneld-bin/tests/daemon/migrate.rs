//! Migration of a running network from etcd's v2 store to its v3 store.

use std::process::Command;

use flannel_testing::{eventually, output_in};

use crate::cluster::{Cluster, PATIENCE, VXLAN, check_ping, running_ping, wait_for_replies};
use crate::interfaces::{cluster, configure_v2};

/// Output and exit status of the command.
struct Outcome {
    lines: Vec<String>,
    errors: String,
    code: Option<i32>,
}

impl Outcome {
    fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|found| found.starts_with(line))
    }

    fn has_suffix(&self, suffix: &str) -> bool {
        self.lines.iter().any(|found| found.ends_with(suffix))
    }
}

fn migrate(cluster: &Cluster, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flanneld"));
    command.arg("migrate-etcd").arg(format!("-etcd-endpoints={}", cluster.etcd.client_url())).args(arguments);
    let output = output_in(cluster.lab.switch(), command).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    Outcome { lines, errors: String::from_utf8(output.stderr).unwrap(), code: output.status.code() }
}

/// The key of a host's record.
fn key(cluster: &Cluster, host: usize) -> String {
    format!("/coreos.com/network/subnets/{}-24", cluster.subnet(host).addr())
}

/// The keys and values in the v3 store with their remaining TTL, if any.
fn in_v3(cluster: &Cluster) -> Vec<(String, String, Option<u64>)> {
    let leases = cluster.leases().into_iter().map(|(key, record)| {
        let number = |text: &str, word: &str| {
            let rest = text.split_once(word).unwrap_or_else(|| panic!("{word} in {text}")).1;
            rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u64>().unwrap()
        };
        let json = cluster.etcd.etcdctl(&["get", &key, "-w=json"]).unwrap();
        let left = json.contains("\"lease\":").then(|| {
            let id = format!("{:x}", number(&json, "\"lease\":"));
            number(&cluster.etcd.etcdctl(&["lease", "timetolive", &id]).unwrap(), "remaining(")
        });
        (key, record, left)
    });
    leases.collect()
}

fn record_v2(cluster: &Cluster, key: &str) -> String {
    cluster.etcdctl_v2(&["get", key]).trim_end().to_owned()
}

#[test]
fn a_running_network_migrates_to_v3_host_by_host_without_packet_loss() {
    let mut cluster = cluster(3);
    configure_v2(&cluster);
    cluster.start_all();
    (0..3).for_each(|host| eventually(PATIENCE, || cluster.routes(host).len() == 2).unwrap());
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    let subnets: Vec<_> = (0..3).map(|host| cluster.subnet(host)).collect();
    // One lease becomes a reservation, and an invalid record is added.
    let reserved = key(&cluster, 2);
    cluster.etcdctl_v2(&["set", "--ttl=0", &reserved, &record_v2(&cluster, &reserved)]);
    cluster.etcdctl_v2(&["set", "/coreos.com/network/subnets/garbage", "x"]);
    let pings = [
        running_ping(&pods[0], &pods[1]),
        running_ping(&pods[1], &pods[2]),
        running_ping(&pods[2], &pods[0]),
    ];

    let shown = migrate(&cluster, &["--dry-run"]);
    assert_eq!((shown.code, cluster.leases().len()), (Some(0), 0), "{:#?} {}", shown.lines, shown.errors);
    assert!(shown.has(&format!("lease {} of 192.168.64.1: would be copied, expires in 2", subnets[0])));
    assert!(
        shown.has("record \"garbage\": ") && shown.has_suffix("ignored, no host can use it"),
        "{:#?}",
        shown.lines
    );
    assert!(shown.has("4 would be copied, 0 unchanged, 1 ignored, 0 in conflict"));
    assert!(cluster.etcd.etcdctl(&["get", "/coreos.com/network/config"]).unwrap().is_empty());

    let done = migrate(&cluster, &[]);
    assert_eq!(done.code, Some(0), "{:#?} {}", done.lines, done.errors);
    assert!(done.has(&format!("reservation {} of 192.168.64.3: copied", subnets[2])), "{:#?}", done.lines);
    assert!(done.has("network config: copied") && done.has("4 copied, 0 unchanged"), "{:#?}", done.lines);
    assert!(done.has("Next: restart flanneld on each host"), "{:#?}", done.lines);
    let copies = in_v3(&cluster);
    assert_eq!(copies.len(), 3);
    for (key, record, left) in &copies {
        assert_eq!(*record, record_v2(&cluster, key));
        assert_eq!(left.is_none(), *key == reserved, "{key}: {left:?}");
        assert!(left.is_none_or(|left| (86_000..=86_400).contains(&left)), "{key}: {left:?}");
    }
    assert_eq!(
        cluster.etcd.etcdctl(&["get", "/coreos.com/network/config"]).unwrap().lines().nth(1),
        Some(VXLAN)
    );

    let again = migrate(&cluster, &[]);
    assert_eq!(again.code, Some(0));
    assert!(again.has("0 copied, 4 unchanged"), "{:#?}", again.lines);

    for host in 0..3 {
        assert_eq!(cluster.daemon(host).terminate(PATIENCE).unwrap().code(), Some(0));
        cluster.start_with(host, &["-etcd-api=v3"]);
        cluster.wait_until_ready(host);
        wait_for_replies(&pings, 20);
    }
    for ping in pings {
        let report = ping.stop();
        assert_eq!(report.lost_count(), 0, "{report:?}");
    }
    assert_eq!((0..3).map(|host| cluster.subnet(host)).collect::<Vec<_>>(), subnets);
    let held = in_v3(&cluster);
    assert_eq!(
        held.iter().map(|(key, ..)| key).collect::<Vec<_>>(),
        copies.iter().map(|(key, ..)| key).collect::<Vec<_>>()
    );
    assert_eq!(
        held.iter().filter(|(_, _, left)| left.is_none()).count(),
        1,
        "the reservation is one still: {held:?}"
    );

    // The record of a host that uses v3 is never overwritten, not even by a newer one in v2.
    let first = key(&cluster, 0);
    cluster.etcdctl_v2(&["set", "--ttl=86400", &first, r#"{"PublicIP":"192.168.64.9"}"#]);
    let late = migrate(&cluster, &[]);
    assert_eq!(late.code, Some(3), "{:#?}", late.lines);
    let refused =
        format!("lease {} of 192.168.64.9: NOT copied: 192.168.64.1 holds the subnet in v3", subnets[0]);
    assert!(late.has(&refused), "{:#?}", late.lines);
    let moved = format!("lease {} of 192.168.64.2: skipped, its host already uses the v3 store", subnets[1]);
    assert!(late.has(&moved), "{:#?}", late.lines);
    let (before, after) = (held.iter().map(|held| &held.1), in_v3(&cluster));
    assert!(before.eq(after.iter().map(|held| &held.1)), "{after:?}");
}

#[test]
fn records_changed_in_v2_since_the_last_run_are_copied_again() {
    let cluster = cluster(1);
    configure_v2(&cluster);
    let set = |ttl: &str, subnet: &str, record: &str| {
        let key = format!("/coreos.com/network/subnets/{subnet}");
        cluster.etcdctl_v2(&["set", ttl, &key, record]);
    };
    set("--ttl=600", "10.5.1.0-24", r#"{"PublicIP":"192.168.0.1"}"#);
    set("--ttl=600", "10.5.2.0-24", r#"{"PublicIP":"192.168.0.2"}"#);
    set("--ttl=600", "10.5.3.0-24", r#"{"PublicIP":"192.168.0.3"}"#);
    assert!(migrate(&cluster, &[]).has("4 copied"));
    set("--ttl=86400", "10.5.1.0-24", r#"{"PublicIP":"192.168.0.1"}"#);
    set("--ttl=600", "10.5.2.0-24", r#"{"PublicIP":"192.168.0.2","BackendType":"host-gw"}"#);
    set("--ttl=600", "10.5.4.0-24", r#"{"PublicIP":"192.168.0.4"}"#);
    set("--ttl=600", "10.5.3.128-25", r#"{"PublicIP":"192.168.0.5"}"#);
    let again = migrate(&cluster, &[]);
    assert_eq!(again.code, Some(3));
    assert!(again.has("lease 10.5.1.0/24 of 192.168.0.1: copied again, expires in 2"), "{:#?}", again.lines);
    assert!(again.has("lease 10.5.2.0/24 of 192.168.0.2: copied again"), "{:#?}", again.lines);
    assert!(again.has("lease 10.5.3.0/24 of 192.168.0.3: already in the v3 store"), "{:#?}", again.lines);
    assert!(again.has("lease 10.5.4.0/24 of 192.168.0.4: copied, expires in"), "{:#?}", again.lines);
    assert!(
        again.has("lease 10.5.3.128/25 of 192.168.0.5: NOT copied: the subnet overlaps 10.5.3.0-24"),
        "{:#?}",
        again.lines
    );
    let found = in_v3(&cluster);
    assert_eq!(found.len(), 4);
    assert!(found[0].2 > Some(80_000) && found[1].1.contains("host-gw"), "{found:?}");
    let leases = cluster.etcd.etcdctl(&["lease", "list"]).unwrap();
    assert_eq!(leases.lines().count(), 5, "those that were replaced are gone: {leases}");
}

#[test]
fn without_a_network_or_etcd_the_command_fails_with_one_line() {
    let mut cluster = cluster(1);
    let nothing = migrate(&cluster, &[]);
    assert_eq!((nothing.code, nothing.errors.lines().count()), (Some(1), 1), "{}", nothing.errors);
    assert!(nothing.errors.contains("no network config in etcd v2 at"), "{}", nothing.errors);
    configure_v2(&cluster);
    cluster.configure(r#"{"Network":"10.9.0.0/16"}"#);
    let other = migrate(&cluster, &[]);
    assert_eq!(other.code, Some(3));
    assert!(other.has("network config: NOT copied"), "{:#?}", other.lines);
    cluster.etcd.stop().unwrap();
    let away = migrate(&cluster, &[]);
    assert_eq!((away.code, away.errors.lines().count()), (Some(1), 1), "{}", away.errors);
    assert!(away.errors.contains("does not answer"), "{}", away.errors);
}

#[test]
fn a_host_that_adopts_an_expiring_copy_holds_a_lease_with_the_full_ttl() {
    let mut cluster = cluster(1);
    configure_v2(&cluster);
    cluster.start(0);
    cluster.wait_until_ready(0);
    let own = key(&cluster, 0);
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    cluster.etcdctl_v2(&["set", "--ttl=120", &own, &record_v2(&cluster, &own)]);
    assert_eq!(migrate(&cluster, &[]).code, Some(0));
    assert!(in_v3(&cluster)[0].2 <= Some(120));
    cluster.start(0);
    cluster.wait_until_ready(0);
    assert_eq!(key(&cluster, 0), own);
    assert!(in_v3(&cluster)[0].2 > Some(86_000), "{:?}", in_v3(&cluster));
    let pod = cluster.add_pod(0);
    check_ping(&pod, &pod);
}
