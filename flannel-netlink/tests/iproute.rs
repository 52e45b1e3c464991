//! Objects created here, as `ip` and `bridge` show them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::cloned_ref_to_slice_refs,
    reason = "a failed step or an unexpected result fails the test"
)]

mod common;

use std::process::Command;

use common::*;
use flannel_netlink::{
    Address, FdbEntry, Namespace, Neighbour, NewLink, NewLinkKind, NewVxlan, Route, WriteRequest,
};
use serde_json::Value;

/// Runs a program of iproute2 in the namespace and reads the JSON it prints.
fn show(namespace: &Namespace, program: &str, arguments: &str) -> Value {
    let output = namespace
        .run(|| Command::new(program).args(["-j", "-d"]).args(arguments.split(' ')).output())
        .unwrap()
        .unwrap_or_else(|error| panic!("{program}: {error}; run: apt-get install iproute2"));
    assert!(output.status.success(), "{program} {arguments}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that `actual` has all members of `expected`.
fn assert_shows(actual: &Value, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&actual[name], value, "{name} of {actual}");
    }
}

#[test]
fn ip_shows_a_vxlan_device_like_that_of_upstream() {
    let (namespace, mut netlink) = namespace();
    let lower = create(&mut netlink, &ethernet("eth0"));
    let vxlan =
        NewVxlan { vni: 1, lower: Some(lower.index), local: Some(ip("10.88.0.1")), ..NewVxlan::default() };
    let link = NewLink {
        mac: Some(mac("0e:2a:00:00:00:01")),
        mtu: Some(1450),
        txqlen: Some(0),
        ..NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan))
    };
    let device = create(&mut netlink, &link);
    set_up(&mut netlink, device.index, true);
    let shown = show(&namespace, "ip", "link show dev flannel.1");
    let expected = serde_json::json!({
        "ifname": "flannel.1", "link": null, "mtu": 1450, "qdisc": "noqueue",
        "address": "0e:2a:00:00:00:01", "txqlen": null,
    });
    assert_shows(&shown[0], &expected);
    let data = serde_json::json!({
        "id": 1, "link": "eth0", "local": "10.88.0.1", "port": 8472, "learning": false, "ttl": 0,
        "ageing": 300, "udp_csum": true, "udp_zero_csum6_tx": false, "udp_zero_csum6_rx": false,
        "remote": null, "group": null, "l2miss": null, "l3miss": null, "proxy": null, "gbp": null,
    });
    assert_eq!(shown[0]["linkinfo"]["info_kind"], "vxlan");
    assert_shows(&shown[0]["linkinfo"]["info_data"], &data);
}

#[test]
fn ip_shows_the_objects_of_a_peer_like_those_of_upstream() {
    let (namespace, mut netlink, index) = namespace_with_vxlan();
    netlink.add_address(&Address::new(index, net("10.5.1.0/32"))).unwrap();
    let writes = [
        WriteRequest::PutNeighbour(Neighbour::permanent(index, ip("10.5.3.0"), mac("0e:2a:00:00:00:03"))),
        WriteRequest::PutFdb(FdbEntry::permanent(index, mac("0e:2a:00:00:00:03"), ip("10.88.0.3"))),
        WriteRequest::PutRoute(Route::onlink(net("10.5.3.0/24"), ip("10.5.3.0"), index)),
        WriteRequest::PutRoute(Route::onlink(net("fd99:3::/64"), ip("fd99:3::"), index)),
    ];
    assert!(netlink.apply(&writes).iter().all(Result::is_ok));

    let addresses = show(&namespace, "ip", "-4 address show dev flannel.1");
    let address = serde_json::json!({
        "family": "inet", "local": "10.5.1.0", "prefixlen": 32, "scope": "global", "broadcast": null,
    });
    assert_shows(&addresses[0]["addr_info"][0], &address);
    let neighbour = show(&namespace, "ip", "-4 neigh show dev flannel.1");
    let expected = serde_json::json!({
        "dst": "10.5.3.0", "lladdr": "0e:2a:00:00:00:03", "state": ["PERMANENT"],
    });
    assert_shows(&neighbour[0], &expected);
    let entry = show(&namespace, "bridge", "fdb show dev flannel.1");
    let expected = serde_json::json!({
        "mac": "0e:2a:00:00:00:03", "dst": "10.88.0.3", "flags": ["self"], "state": "permanent",
    });
    assert_shows(&entry[0], &expected);
    let route = show(&namespace, "ip", "-4 route show dev flannel.1");
    let expected = serde_json::json!({
        "type": "unicast", "dst": "10.5.3.0/24", "gateway": "10.5.3.0", "protocol": "boot",
        "scope": "global", "flags": ["onlink"], "metric": null,
    });
    assert_shows(&route[0], &expected);
    let route = show(&namespace, "ip", "-6 route show dev flannel.1 proto boot");
    let expected = serde_json::json!({
        "dst": "fd99:3::/64", "gateway": "fd99:3::", "flags": ["onlink"], "metric": 1024,
    });
    assert_shows(&route[0], &expected);
}
