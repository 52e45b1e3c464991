//! The external interface is selected and followed on a real host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

use std::time::Duration;

use flannel_core::{ExternalInterface, ExternalUpdate, IpFamilies, NetworkConfig};
use flannel_dataplane::{InterfacePattern, InterfaceSelector, SelectError, external_interface};
use flannel_testing::harness::ip;
use flannel_testing::{BackendHarness, Lab, LabOptions};
use futures::StreamExt;
use futures::stream::BoxStream;

const DEADLINE: Duration = BackendHarness::DEADLINE;
const QUIET: Duration = BackendHarness::QUIET;

fn lab() -> Lab {
    Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap()
}

#[test]
fn an_interface_is_selected_by_each_rule() {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    ip(host, "link add lan0 up type bridge");
    ip(host, "address add 10.99.0.1/24 dev lan0");
    ip(host, "route replace default via 10.99.0.254");
    let pattern = |text| InterfacePattern::new(text).unwrap();
    let selector = InterfaceSelector::new;
    for (selector, expected) in [
        (selector(), "lan0"),
        (selector().with_interface("eth0"), "eth0"),
        (selector().with_interface("10.99.0.1"), "lan0"),
        (selector().with_pattern(pattern(r"^192\.168\.64\.")), "eth0"),
        (selector().with_pattern(pattern("^lan")), "lan0"),
        (selector().with_reachable("192.168.64.77".parse().unwrap()), "eth0"),
        (selector().with_public_v4("192.168.64.1".parse().unwrap()), "eth0"),
    ] {
        assert_eq!(selector.select(host).unwrap().name, expected, "{selector:?}");
    }
    let named = selector().with_interface("eth0");
    assert_eq!(named.select_for(host, IpFamilies::BOTH).unwrap(), external_interface(host, "eth0").unwrap());
    let error = selector().with_interface("eth9").select(host).unwrap_err();
    assert!(matches!(error, SelectError::NotFound(_)) && error.to_string().contains("eth9: "), "{error}");
}

#[test]
fn changes_are_reported_once_they_have_settled() {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let choose = InterfaceSelector::new().with_interface("eth0").choose(host).unwrap().into_chooser();
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let choice = choose(&config, config.families()).unwrap();
    assert_eq!(choice.interface, external_interface(host, "eth0").unwrap());
    let mut changes: BoxStream<'static, ExternalUpdate> = choice.changes;
    let mut next = |limit: Duration| {
        runtime.block_on(async { tokio::time::timeout(limit, changes.next()).await.ok().flatten() })
    };
    let mut changed = |limit: Duration| -> Option<ExternalInterface> {
        next(limit).map(|update| match update {
            ExternalUpdate::Changed(external) => external,
            update @ (ExternalUpdate::Lost(_) | _) => panic!("{update:?}"),
        })
    };
    assert_eq!(changed(QUIET), None);
    // Other interfaces and routes are not reported.
    ip(host, "link add dummy0 up type bridge");
    ip(host, "route add 10.66.0.0/16 via 192.168.64.254");
    assert_eq!(changed(QUIET), None);
    ip(host, "address add 192.168.64.7/24 dev eth0");
    assert_eq!(changed(QUIET), None, "the first address is kept");
    ip(host, "link set eth0 mtu 1300");
    assert_eq!(changed(DEADLINE).unwrap().mtu, 1300);
    ip(host, "address del 192.168.64.1/24 dev eth0");
    ip(host, "address add 192.168.64.8/24 dev eth0");
    let mut moved = changed(DEADLINE).unwrap();
    assert_eq!((moved.mtu, moved.v4.is_some()), (1300, true));
    assert_eq!(changed(QUIET), None);
    let lost = |update: Option<ExternalUpdate>| match update {
        Some(ExternalUpdate::Lost(reason)) => reason,
        update => panic!("{update:?}"),
    };
    ip(host, "address flush dev eth0");
    let at = format!("eth0 at {} and {}", moved.v4.unwrap(), moved.v6.unwrap());
    assert_eq!(lost(next(DEADLINE)), format!("eth0 has no usable IPv4 address; continuing with {at}"));
    ip(host, "link del eth0");
    assert_eq!(lost(next(DEADLINE)), format!("there is no interface eth0; continuing with {at}"));
    ip(host, "link add eth0 mtu 1300 type bridge");
    ip(host, &format!("address add {}/24 dev eth0", moved.v4.unwrap()));
    let Some(ExternalUpdate::Changed(back)) = next(DEADLINE) else { panic!("it is back") };
    assert_ne!(back.index, moved.index);
    (moved.index, moved.v6, moved.public.v6) = (back.index, back.v6, back.public.v6);
    assert_eq!(back, moved);
    assert_eq!(next(QUIET), None);
}
