//! Removal while commands for peers are queued leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_backend_extension::OpenExtension;
use flannel_core::{
    Dirty, ExternalInterface, Lease, LeaseChange, NetworkConfig, OpenBackend, OpenRequest, PeerSet,
    SyncRequest,
};
use flannel_netlink::Namespace;
use flannel_testing::{Directory, eventually};

/// The race with the next queued command is short, so the test repeats.
const ATTEMPTS: u32 = 10;

#[test]
fn a_removal_adds_no_peer_whose_command_is_queued() {
    let directory = Directory::new().unwrap();
    for attempt in 0..ATTEMPTS {
        let log = directory.join(attempt.to_string());
        remove_while_commands_wait(&log);
        let log = std::fs::read_to_string(&log).unwrap();
        let mut added = BTreeSet::new();
        for line in log.lines() {
            match line.split_once(' ').unwrap() {
                ("add", subnet) => added.insert(subnet),
                (_, subnet) => added.remove(subnet),
            };
        }
        assert!(added.is_empty(), "{log}");
    }
}

/// Removes the backend while the first command runs and others are queued. Each command appends a line to the log.
fn remove_while_commands_wait(log: &Path) {
    let note = |what: &str| format!("echo {what} $SUBNET >>{}", log.display());
    let (add, remove) = (format!("{}; exec sleep 60", note("add")), note("remove"));
    let config = format!(
        r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension",
           "SubnetAddCommand":"{add}","SubnetRemoveCommand":"{remove}"}}}}"#
    );
    let config = NetworkConfig::parse(&config).unwrap();
    let own = Ipv4Addr::new(192, 168, 64, 1);
    let external = ExternalInterface::new("eth0", 1, 1500, own);
    let opener = OpenExtension::new(Namespace::current().unwrap());
    let mut backend = opener.open(OpenRequest::new(&config, &external)).unwrap();
    backend.configure(&Lease::new("10.5.1.0-24".parse().unwrap(), backend.attrs().at(own.into()))).unwrap();
    let mut peers = PeerSet::default();
    for n in 2..10 {
        let attrs = backend.attrs().at(Ipv4Addr::new(192, 168, 64, n).into());
        let lease = Lease::new(format!("10.5.{n}.0-24").parse().unwrap(), attrs);
        peers.apply(LeaseChange::Put(Arc::new(lease)));
    }
    backend.sync(SyncRequest::new(&peers, &Dirty::All, Instant::now()));
    eventually(Duration::from_secs(60), || std::fs::read_to_string(log)).unwrap();
    backend.remove().unwrap();
    // Dropping ends a command that has just started.
    drop(backend);
}
