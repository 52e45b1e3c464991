//! The external interface is followed on a real host.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::time::Duration;

use flannel_core::ExternalInterface;
use flannel_dataplane::{Look, Namespace, external_interface, follow_external};
use flannel_testing::harness::ip;
use flannel_testing::{BackendHarness, Lab, LabOptions};
use futures::StreamExt;
use futures::stream::BoxStream;

const DEADLINE: Duration = BackendHarness::DEADLINE;
const QUIET: Duration = BackendHarness::QUIET;

/// The changes of `eth0` of a host, followed by its name.
fn changes(host: &Namespace) -> BoxStream<'static, ExternalInterface> {
    let (namespace, known) = (host.clone(), external_interface(host, "eth0").unwrap());
    let look = {
        let namespace = namespace.clone();
        move |_: &ExternalInterface| {
            external_interface(&namespace, "eth0").map_or(Look::Nothing, |now| match now.v4 {
                Some(_) => Look::Found(now),
                None => Look::Nothing,
            })
        }
    };
    follow_external(namespace, known, look).unwrap()
}

#[test]
fn what_becomes_of_an_interface_is_told_once_it_has_settled() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let host = &lab.hosts[0].namespace;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut changes = changes(host);
    let mut told = |limit: Duration| {
        runtime.block_on(async { tokio::time::timeout(limit, changes.next()).await.ok().flatten() })
    };
    assert_eq!(told(QUIET), None);
    // What others do beside it is nothing.
    ip(host, "link add dummy0 up type bridge");
    ip(host, "route add 10.66.0.0/16 via 192.168.64.254");
    assert_eq!(told(QUIET), None);
    // Without an address there is nothing to follow; the next one is told once.
    ip(host, "address flush dev eth0");
    assert_eq!(told(QUIET), None);
    ip(host, "address add 192.168.64.7/24 dev eth0");
    let mut moved = told(DEADLINE).unwrap();
    assert_eq!(moved.v4, "192.168.64.7".parse().ok());
    assert_eq!(told(QUIET), None);
    ip(host, "link set eth0 mtu 1300");
    assert_eq!(told(DEADLINE).unwrap().mtu, 1300);
    ip(host, "link del eth0");
    assert_eq!(told(QUIET), None);
    ip(host, "link add eth0 mtu 1300 type bridge");
    ip(host, "address add 192.168.64.7/24 dev eth0");
    let again = told(DEADLINE).unwrap();
    assert_ne!(again.index, moved.index);
    (moved.index, moved.mtu) = (again.index, 1300);
    assert_eq!(again, moved);
}
