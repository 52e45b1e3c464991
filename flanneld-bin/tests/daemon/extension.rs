//! The backends that carry no traffic themselves: `extension`, with the examples of its page, and `alloc`.

use std::fs;
use std::path::PathBuf;

use flannel_testing::{Directory, eventually};

use crate::cluster::{Cluster, PATIENCE, check_ping};
use crate::failing;

const PAGE: &str = include_str!("../../../docs/extension.md");

/// The examples of the page: plain routes, and a tunnel.
fn examples() -> Vec<&'static str> {
    PAGE.split("```json\n").skip(1).map(|part| part.split("```").next().unwrap()).collect()
}

fn started(config: &str, hosts: usize) -> Cluster {
    let mut cluster = Cluster::new(hosts);
    cluster.configure(config);
    cluster.start_all_with(&["-release-on-exit"]);
    cluster
}

/// The number of the host's routes to peers.
fn routes(cluster: &Cluster, host: usize) -> usize {
    cluster.lines(host, "ip route").iter().filter(|line| line.starts_with("10.5.")).count()
}

fn peers_reach_each_other_until_one_leaves(cluster: &mut Cluster) {
    for host in 0..3 {
        eventually(PATIENCE, || routes(cluster, host) == 2).expect("a route to each peer");
    }
    let pods: Vec<_> = (0..3).map(|host| cluster.add_pod(host)).collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        check_ping(&pods[from], &pods[to]);
    }
    let status = cluster.daemon(2).terminate(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0), "{:#?}", cluster.daemon(2).lines());
    for host in 0..2 {
        eventually(PATIENCE, || routes(cluster, host) == 2)
            .expect("the own pods' route, and one to the peer that is left");
    }
}

#[test]
fn the_example_with_plain_routes_connects_hosts() {
    let mut cluster = started(examples()[0], 3);
    peers_reach_each_other_until_one_leaves(&mut cluster);
}

#[test]
fn the_example_with_a_tunnel_connects_hosts_and_leaves_nothing_after_a_release() {
    let mut cluster = started(examples()[1], 3);
    peers_reach_each_other_until_one_leaves(&mut cluster);
    for (host, peers) in [(0, 1), (1, 1), (2, 0)] {
        eventually(PATIENCE, || cluster.lines(host, "ip neigh show dev vx0 nud permanent").len() == peers)
            .unwrap();
        let entries = cluster.lines(host, "bridge fdb show dev vx0");
        assert_eq!(
            entries.iter().filter(|line| line.contains("dst 192.168.64.")).count(),
            peers,
            "{entries:?}"
        );
    }
    assert!(!cluster.lines(2, "ip link").iter().any(|line| line.contains("vx0")), "ShutdownCommand ran");
}

/// A temporary directory into which commands write.
struct CommandLog(Directory);

impl CommandLog {
    fn new() -> Self {
        Self(Directory::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// A command that records its environment and input.
    fn command(&self, name: &str) -> String {
        let file = self.path(name).display().to_string();
        format!("{{ echo $NETWORK $SUBNET $PUBLIC_IP; cat; }} >{file}.new; mv {file}.new {file}")
    }
}

fn config(commands: &[(&str, &str)]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', r"\\").replace('"', r#"\""#));
    let members: Vec<_> =
        commands.iter().map(|(name, text)| format!(r#","{name}":{}"#, quoted(text))).collect();
    format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension"{}}}}}"#, members.concat())
}

#[test]
fn commands_get_the_same_input_as_from_upstream() {
    let notes = CommandLog::new();
    let config = config(&[
        ("PreStartupCommand", "echo '  hello'; echo 'world '; echo err >&2"),
        ("PostStartupCommand", &notes.command("post-$PUBLIC_IP")),
        ("SubnetAddCommand", &notes.command("add-$PUBLIC_IP")),
        ("SubnetRemoveCommand", &notes.command("remove-$PUBLIC_IP")),
    ]);
    let mut cluster = started(&config, 2);
    let (own, peer) = (cluster.subnet(0), cluster.subnet(1));
    let records: Vec<_> = cluster.leases().into_iter().map(|(_, record)| record).collect();
    let attrs = r#""BackendType":"extension","BackendData":"hello\nworld \nerr","#;
    assert!(records.iter().all(|record| record.contains(attrs)), "{records:?}");
    let input = format!("{peer} 192.168.64.2\nhello\nworld \nerr\n");
    eventually(PATIENCE, || notes.read("add-192.168.64.2").is_some()).unwrap();
    assert_eq!(notes.read("add-192.168.64.2").as_deref(), Some(input.as_str()));
    let post = notes.read("post-192.168.64.1");
    assert_eq!(post, Some(format!("10.5.0.0/16 {own} 192.168.64.1\n\n")));
    cluster.daemon(0).wait_for_line("PreStartupCommand: err", PATIENCE).unwrap();
    cluster.daemon(1).terminate(PATIENCE).unwrap();
    eventually(PATIENCE, || notes.read("remove-192.168.64.2").is_some()).unwrap();
    assert_eq!(notes.read("remove-192.168.64.2").as_deref(), Some(input.as_str()));
}

#[test]
fn a_failing_start_command_ends_the_daemon_with_its_output() {
    for name in ["PreStartupCommand", "PostStartupCommand"] {
        let mut cluster = Cluster::new(1);
        cluster.configure(&config(&[(name, "echo no such module >&2; exit 3")]));
        let command = cluster.command(0);
        let (status, errors) = failing::ended(&mut cluster, command);
        assert_eq!((status, errors.len()), (Some(1), 1), "{errors:?}");
        let reason = format!("Error registering network: {name} exit status: 3: no such module");
        assert!(errors[0].ends_with(&reason), "{errors:?}");
    }
}

#[test]
fn a_command_that_hangs_blocks_neither_start_nor_stop_and_is_killed() {
    for flags in [&[][..], &["-release-on-exit"]] {
        let notes = CommandLog::new();
        let pid = notes.path("pid").display().to_string();
        let add = format!("[ $PUBLIC_IP = 192.168.64.2 ] || exit 0; echo $$ >{pid}; exec sleep 1234");
        let mut cluster = Cluster::new(2);
        cluster.configure(&config(&[("SubnetAddCommand", &add)]));
        for host in [1, 0] {
            cluster.start_with(host, flags);
            cluster.wait_until_ready(host);
        }
        let pid: u32 = eventually(PATIENCE, || notes.read("pid")?.trim().parse().ok()).unwrap();
        // A killed process may remain a zombie until init reaps it (proc_pid_stat(5)).
        let is_alive = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        assert!(is_alive());
        let status = cluster.daemon(0).terminate(PATIENCE).unwrap();
        assert_eq!(status.code(), Some(0), "{:#?}", cluster.daemon(0).lines());
        assert!(!is_alive(), "{flags:?}");
    }
}

#[test]
fn a_peer_whose_command_failed_is_reported_and_retried() {
    let notes = CommandLog::new();
    let [cured, done] = ["cured", "done"].map(|name| notes.path(name).display().to_string());
    let add = format!("test -e {cured} || {{ echo not yet; exit 7; }}; echo $PUBLIC_IP >>{done}");
    let mut cluster = started(&config(&[("SubnetAddCommand", &add)]), 2);
    let failure = format!("SubnetAddCommand for {}: exit status: 7: not yet; retrying", cluster.subnet(1));
    cluster.daemon(0).wait_for_line(&failure, PATIENCE).unwrap();
    fs::write(&cured, "").unwrap();
    eventually(PATIENCE, || notes.read("done").is_some_and(|text| text.contains("192.168.64.2"))).unwrap();
}

#[test]
fn alloc_leases_a_subnet_and_touches_nothing() {
    let mut cluster = started(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"Alloc"}}"#, 2);
    for host in 0..2 {
        assert_eq!(cluster.subnet_env(host, "FLANNEL_MTU"), "1500");
        assert_eq!(routes(&cluster, host), 0);
        assert!(!cluster.lines(host, "ip -br link").iter().any(|line| line.contains("flannel")));
    }
    let (_, record) = cluster.leases().remove(0);
    assert!(!record.contains("Backend"), "{record}");
    cluster.daemon(0).terminate(PATIENCE).unwrap();
    assert_eq!(cluster.leases().len(), 1, "and gives it back");
}
