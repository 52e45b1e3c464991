//! Checks that dropping every handle leaves nothing. Alone in its file, and so in its process, because it counts.

#![allow(clippy::unwrap_used, reason = "a failed expectation is how a test fails")]

use flannel_netlink::{Namespace, Netlink};
use flannel_testing::{
    Capture, Etcd, EtcdOptions, Lab, LabOptions, PingOptions, Process, RunningPing, eventually,
};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn dropped_handles_leave_nothing() {
    // The thread that starts programs stays, so it has to exist before the count.
    use_everything();
    let before = Leftovers::now();
    for _ in 0..3 {
        let switch = use_everything();
        // The hosts' namespaces end with their links to the switch.
        let ports = || {
            let links = Netlink::open_in(&switch).unwrap().links().unwrap();
            let left: Vec<_> =
                links.into_iter().map(|link| link.name).filter(|name| name.starts_with("port")).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        };
        eventually(LIMIT, ports).unwrap();
    }
    let same = || {
        let now = Leftovers::now();
        if now == before { Ok(()) } else { Err(format!("{now:#?} instead of {before:#?}")) }
    };
    eventually(LIMIT, same).unwrap();
}

/// Uses each part once and returns the namespace of the switch, the only object still held.
fn use_everything() -> Namespace {
    let lab = Lab::new(&LabOptions { hosts: 3, named: true, ..LabOptions::default() }).unwrap();
    let host = &lab.hosts[0];
    let pod = host.add_pod(&["10.5.3.0/24".parse().unwrap()], 1450).unwrap();
    let inside = Some((lab.hosts[1].namespace.clone(), lab.hosts[1].addresses[0].addr()));
    let _etcd = Etcd::start_with(EtcdOptions { inside, ..EtcdOptions::default() }).unwrap();
    let mut command = Command::new("sleep");
    command.arg("1000");
    let _process = Process::spawn_in(&pod.namespace, command).unwrap();
    let _capture = Capture::start(&host.namespace, "eth0").unwrap();
    let interval = Duration::from_millis(5);
    let to = lab.hosts[2].addresses[0].addr();
    let running = RunningPing::start(&host.namespace, to, interval, &PingOptions::default()).unwrap();
    running.wait_for_replies(3, LIMIT).unwrap();
    lab.switch().clone()
}

/// Everything that this process could leave behind.
#[derive(Debug, Eq, PartialEq)]
struct Leftovers {
    links: Vec<String>,
    threads: usize,
    descriptors: usize,
    children: BTreeSet<u32>,
    names: BTreeSet<String>,
}

impl Leftovers {
    fn now() -> Self {
        let links = Netlink::open().unwrap().links().unwrap();
        let threads: Vec<_> = fs::read_dir("/proc/self/task").unwrap().flatten().collect();
        let own = format!("flannel-{}-", std::process::id());
        Self {
            links: links.into_iter().map(|link| link.name).collect(),
            threads: threads.len(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            children: children(),
            names: entries("/run/netns", &own),
        }
    }
}

/// Returns the children of this process (`proc_pid_status(5)`).
fn children() -> BTreeSet<u32> {
    let own = format!("PPid:\t{}\n", std::process::id());
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        status.contains(&own).then_some(number)
    });
    processes.collect()
}

fn entries(directory: &str, prefix: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}
