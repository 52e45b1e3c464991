//! The programs that write the rules: when they run, and how their failures are handled.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_testing::{Directory, eventually, write_program};

use crate::cluster::{Cluster, NFTABLES, PATIENCE, VXLAN};

/// With an audit per second, a daemon that is idle for this long has verified its rules.
const SETTLED: Duration = Duration::from_secs(2);

/// Replacements of the system's programs, in a directory with their logs.
struct Programs(Directory);

impl Programs {
    fn new() -> Self {
        Self(Directory::new().unwrap())
    }

    /// Adds a program as a shell script.
    fn add(&self, program: &str, script: &str) {
        write_program(&self.path(program), &format!("#!/bin/sh\n{script}\n")).unwrap();
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Starts the daemon of the first host with these programs and flags, and waits until it is ready.
    fn start(&self, cluster: &mut Cluster, flags: &[&str]) {
        let mut command = cluster.command(0);
        command.args(flags).env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.0.path().display()));
        cluster.start_as(0, command);
        cluster.wait_until_ready(0);
    }
}

const PROGRAMS: [&str; 7] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
    "nft",
];

#[test]
fn an_audit_finds_changes_of_legacy_iptables() {
    let programs = Programs::new();
    for name in &PROGRAMS[..6] {
        programs.add(name, &format!("exec {} \"$@\"", name.replacen("tables", "tables-legacy", 1)));
    }
    let (mut cluster, _pods) = Cluster::with_pods(1, VXLAN, &["-iptables-forward-rules=false"]);
    programs.start(&mut cluster, &["-ip-masq", "-iptables-resync=1"]);
    let list = || cluster.shell(0, "iptables-legacy-save | grep -e -A");
    let before = list();
    assert_eq!(before.lines().count(), 10, "{before}");
    for change in ["-t nat -F", "-F", "-t nat -D FLANNEL-POSTRTG 2"] {
        // Until an audit finds no drift.
        std::thread::sleep(SETTLED);
        // All namespaces share one lock.
        drop(cluster.shell(0, &format!("iptables-legacy --wait {change}")));
        eventually(PATIENCE, || if list() == before { Ok(()) } else { Err(list()) })
            .unwrap_or_else(|error| panic!("after {change}: {error}"));
    }
}

#[test]
fn an_idle_daemon_runs_no_programs_and_uses_hardly_any_cpu() {
    for (name, config, tables) in [
        ("idle-iptables", VXLAN, "tables"),
        ("idle-nftables", NFTABLES, "tables"),
        ("idle-legacy", VXLAN, "tables-legacy"),
    ] {
        let programs = Programs::new();
        let log = programs.path("log");
        let nft = flannel_testing::program("nft", "nftables").unwrap();
        for program in PROGRAMS {
            let real = nft.with_file_name(program.replacen("tables", tables, 1));
            let note = format!("echo {program} \"$@\" >> {}", log.display());
            programs.add(program, &format!("{note}\nexec {} \"$@\"", real.display()));
        }
        let mut cluster = Cluster::new(1);
        cluster.configure(config);
        programs.start(&mut cluster, &["-ip-masq", "-iptables-resync=1", "-restrict-tunnel-port"]);
        let (runs, used, began) = (at_rest(&log), cpu_time(&mut cluster), Instant::now());
        // Several audits.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(fs::read_to_string(&log).unwrap(), runs, "{name}");
        let share = (cpu_time(&mut cluster) - used).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("{name}: {:.4} % of a core", share * 100.0);
        if tables == "tables" {
            // Like kube-proxy, in other chains.
            for _ in 0..2 {
                drop(
                    cluster.shell(
                        0,
                        "iptables -t nat -N KUBE-X; iptables -t nat -A KUBE-X -s 192.0.2.1 -j RETURN",
                    ),
                );
                std::thread::sleep(Duration::from_millis(1500));
                drop(cluster.shell(0, "iptables -t nat -F KUBE-X; iptables -t nat -X KUBE-X"));
            }
            assert_eq!(fs::read_to_string(&log).unwrap(), runs, "{name}: somebody else's chains");
        }
        // Five times the documented bound, for slow machines.
        assert!(share < 0.005, "{name}: {share} of a core");
    }
}

/// Waits until no program has run for a while, and returns the log.
fn at_rest(log: &Path) -> String {
    let (mut runs, mut since) = (String::new(), Instant::now());
    let at_rest = eventually(PATIENCE, || {
        let now = fs::read_to_string(log).unwrap_or_default();
        if now != runs {
            (runs, since) = (now, Instant::now());
        }
        if !runs.is_empty() && since.elapsed() > SETTLED { Ok(()) } else { Err(runs.clone()) }
    });
    at_rest.unwrap();
    runs
}

/// The CPU time of the first host's daemon (`/proc/PID/schedstat` of its only thread).
fn cpu_time(cluster: &mut Cluster) -> Duration {
    let pid = cluster.daemon(0).id();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanoseconds = tasks.map(|task| {
        let text = fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanoseconds.sum())
}

#[test]
fn rules_that_cannot_be_written_are_logged_and_retried_while_the_network_runs() {
    let programs = Programs::new();
    let script = format!(
        "echo >> {0}; [ $(wc -l < {0}) -gt 4 ] && exec /usr/sbin/iptables-restore \"$@\"; cat > /dev/null
        echo 'Another app is currently holding the xtables lock.' >&2; exit 4",
        programs.path("count").display()
    );
    programs.add("iptables-restore", &script);
    let mut cluster = Cluster::new(1);
    cluster.configure(VXLAN);
    programs.start(&mut cluster, &["-ip-masq"]);
    let line = "Failed to setup firewall rules: IPv4 rules in iptables: iptables-restore failed (exit status: 4): \
                Another app is currently holding the xtables lock.; retrying";
    cluster.daemon(0).wait_for_line(line, PATIENCE).unwrap();
    cluster.daemon(0).wait_for_line("The firewall rules are in order again", PATIENCE).unwrap();
    let count = cluster.daemon(0).lines().iter().filter(|line| line.contains("xtables lock")).count();
    assert_eq!(count, 1, "an unchanged failure is logged once");
    assert!(cluster.rules(0).contains("FLANNEL-POSTRTG"));
}
