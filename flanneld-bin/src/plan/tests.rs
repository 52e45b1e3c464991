use flannel_core::PlannedChange;

use super::*;

fn host_plan(changes: Vec<PlannedChange>) -> HostPlan {
    let subnet = "10.5.1.0-24".parse().expect("a key");
    let peer = "10.5.4.0-24".parse().expect("a key");
    HostPlan {
        source: PlanSource::Cache {
            file: "/run/flannel/subnet.env.cache".into(),
            reason: "etcd is away".to_owned(),
        },
        subnets: subnet,
        peers: 3,
        changes,
        unreachable: vec![UnreachablePeer { peer, reason: "ignoring non-vxlan subnet".to_owned() }],
    }
}

fn changes() -> Vec<PlannedChange> {
    let route = "route 10.5.2.0/24 via 10.5.2.0";
    vec![
        PlannedChange::put(route, Some("route 10.5.2.0/24 via 10.5.9.9".to_owned())),
        PlannedChange::put("device flannel.1", None),
        PlannedChange::remove("neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{1b}[2J"),
    ]
}

#[test]
fn the_text_has_a_line_for_each_change() {
    let expected = "plan for 10.5.1.0/24 with 3 peers, from the cache /run/flannel/subnet.env.cache (etcd is away)\n\
                    + route 10.5.2.0/24 via 10.5.2.0, instead of route 10.5.2.0/24 via 10.5.9.9\n\
                    + device flannel.1\n\
                    - neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{fffd}[2J\n\
                    ? peer 10.5.4.0/24: ignoring non-vxlan subnet\n\
                    2 would be written, 1 would be removed\n";
    assert_eq!(text(&host_plan(changes())), expected);
    assert!(text(&host_plan(Vec::new())).ends_with("nothing to change\n"));
}

/// Other programs rely on these members.
#[test]
fn the_json_of_a_plan_is_stable() {
    let written: serde_json::Value = serde_json::from_str(&json(&host_plan(changes()))).expect("json");
    let expected = serde_json::json!({
        "source": {"kind": "cache", "file": "/run/flannel/subnet.env.cache", "reason": "etcd is away"},
        "subnets": ["10.5.1.0/24"],
        "peers": 3,
        "changes": [
            {
                "action": "put",
                "object": "route 10.5.2.0/24 via 10.5.2.0",
                "instead_of": "route 10.5.2.0/24 via 10.5.9.9",
            },
            {"action": "put", "object": "device flannel.1", "instead_of": null},
            {
                "action": "remove",
                "object": "neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{1b}[2J",
                "instead_of": null,
            },
        ],
        "unreachable": [{"subnets": ["10.5.4.0/24"], "reason": "ignoring non-vxlan subnet"}],
    });
    assert_eq!(written, expected);
    let registry = PlanSource::Registry { name: "etcd".to_owned() };
    let written = serde_json::to_value(registry).expect("json");
    assert_eq!(written, serde_json::json!({"kind": "registry", "name": "etcd"}));
}
