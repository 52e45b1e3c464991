//! Records in etcd, and the number of calls.

use flannel_core::{
    BackendAttrs, BackendType, Json, Lease, RegistryError, RegistryEvent, SubnetRegistry, Term,
};
use flannel_registry::Etcd3Registry;
use futures::future::join;

use crate::common::proxy::Proxy;
use crate::server::{DAY, PREFIX, Server, host, next, subnet, subnet_key, until, words};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_match_upstream_v0_28_byte_for_byte() {
    let server = Server::start();
    let registry = server.registry();
    let data = Json::parse(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#).unwrap();
    let vxlan = BackendAttrs::new(BackendType::VXLAN).with_data(Some(data)).at(host(3).public);
    let mut dual = vxlan.clone();
    dual.public.v6 = Some("fd00::1".parse().unwrap());
    dual.backend_v6_data = Some(Json::parse(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}"#).unwrap());
    registry.create(subnet(1), &vxlan, DAY).await.unwrap();
    registry.create("10.5.2.0-24&fc00:0:0:1::-64".parse().unwrap(), &dual, DAY).await.unwrap();
    registry.create(subnet(3), &host(9), DAY).await.unwrap();

    let stored = server.ctl(&["get", "--prefix", PREFIX]);
    let expected = [
        "/coreos.com/network/subnets/10.5.1.0-24",
        r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        "/coreos.com/network/subnets/10.5.2.0-24&fc00:0:0:1::-64",
        r#"{"PublicIP":"192.168.0.3","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}}"#,
        "/coreos.com/network/subnets/10.5.3.0-24",
        r#"{"PublicIP":"192.168.0.9","PublicIPv6":null}"#,
    ];
    assert_eq!(stored.lines().collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_has_its_ttl_in_etcd_and_leaves_nothing_behind() {
    let server = Server::start();
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let first = only_lease(&server);
    let seen = server.ctl(&["lease", "timetolive", &first, "--keys"]);
    assert!(seen.contains("granted with TTL(86400s)"), "{seen}");
    assert!(seen.contains(&subnet_key("10.5.1.0-24")), "{seen}");

    let lease = registry.update(&lease, &host(2), DAY).await.unwrap();
    let second = only_lease(&server);
    assert_ne!(first, second, "an update comes with a lease of its own");
    assert_eq!(registry.renew(&lease, DAY).await.unwrap(), DAY);
    assert_eq!(only_lease(&server), second);

    assert!(matches!(registry.create(subnet(1), &host(3), DAY).await, Err(RegistryError::Exists(_))));
    assert_eq!(only_lease(&server), second);
    registry.delete(&lease).await.unwrap();
    assert_eq!(server.ctl(&["lease", "list"]), "found 0 leases");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_lease_with_other_keys_is_not_revoked() {
    let server = Server::start();
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let id = only_lease(&server);
    server.ctl(&["put", "--lease", &id, "/somebody/elses", "value"]);
    let lease = registry.update(&lease, &host(2), DAY).await.unwrap();
    registry.delete(&lease).await.unwrap();
    assert_eq!(server.ctl(&["get", "/somebody/elses", "--print-value-only"]), "value");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_never_gets_a_lease() {
    let server = Server::start();
    let registry = server.registry();
    server.put("10.5.1.0-24", r#"{"PublicIP":"192.168.0.1"}"#);
    let reservation = only(&registry).await;
    assert_eq!(reservation.term, Term::Permanent);
    let updated = registry.update(&reservation, &host(1), DAY).await.unwrap();
    registry.renew(&updated, DAY).await.unwrap();
    assert_eq!(only(&registry).await, updated);
    assert_eq!(server.ctl(&["lease", "list"]), "found 0 leases");
    // The same value written by another client is a change.
    server.put("10.5.1.0-24", &updated.attrs.to_record());
    assert!(matches!(registry.update(&updated, &host(1), DAY).await, Err(RegistryError::Changed(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_lease_is_gone() {
    let server = Server::start();
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.ctl(&["lease", "revoke", &only_lease(&server)]);
    assert!(matches!(registry.renew(&lease, DAY).await, Err(RegistryError::Gone(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewing_a_lease_sends_no_event_and_writes_nothing() {
    let server = Server::start();
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let before = server.revision();
    for _ in 0..5 {
        registry.renew(&lease, DAY).await.unwrap();
    }
    assert_eq!(server.revision(), before);
    server.put("10.5.9.0-24", r#"{"PublicIP":"192.168.0.9"}"#);
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["put 10.5.9.0-24"]);
    let calls = registry.calls();
    assert_eq!((calls.lease_keep_alive, calls.txn, calls.lease_grant), (5, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_hosts_that_race_for_a_subnet_gets_it() {
    let server = Server::start();
    let (one, other) = (server.registry(), server.registry());
    let (first, second) = (host(1), host(2));
    for third in 1..=50 {
        let race = join(one.create(subnet(third), &first, DAY), other.create(subnet(third), &second, DAY));
        let (winner, loser) = match race.await {
            (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
            both => panic!("one must win: {both:?}"),
        };
        assert!(matches!(loser, RegistryError::Exists(taken) if taken == subnet(third)));
        let list = one.list().await.unwrap();
        assert_eq!(list.leases.iter().find(|lease| lease.subnet == subnet(third)), Some(&winner.into()));
    }
    assert!(server.ctl(&["lease", "list"]).starts_with("found 50 leases"), "losers keep no lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_written_later_is_read() {
    let server = Server::start();
    let registry = server.registry();
    assert_eq!(registry.config().await.unwrap(), None);
    server.ctl(&["put", "/coreos.com/network/config", r#"{"Network":"10.5.0.0/16"}"#]);
    assert_eq!(registry.config().await.unwrap().as_deref(), Some(r#"{"Network":"10.5.0.0/16"}"#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_makes_one_call_per_page() {
    let server = Server::start();
    let mut options = server.options();
    options.page_size = 100;
    let registry = Etcd3Registry::new(options).unwrap();
    let mut client = etcd_client::Client::connect([server.url()], None).await.unwrap();
    for i in 0..250_u32 {
        let key = subnet_key(&format!("10.{}.{}.0-24", i / 200, i % 200));
        client.put(key, r#"{"PublicIP":"192.168.0.1"}"#, None).await.unwrap();
    }
    let before = registry.calls();
    let list = registry.list().await.unwrap();
    assert_eq!((list.leases.len(), list.bad.len()), (250, 0));
    let mut after = registry.calls();
    assert_eq!(after.range - before.range, 3);
    after.range = before.range;
    assert_eq!(after, before, "nothing else was asked");
    assert_eq!(list.revision.0, server.revision());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_outside_the_network_are_no_leases() {
    let server = Server::start();
    for key in ["subnets-old/10.5.1.0-24", "subnets", "subnets0", "subnet/10.5.1.0-24"] {
        server.ctl(&["put", &format!("{PREFIX}/{key}"), r#"{"PublicIP":"192.168.0.1"}"#]);
    }
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let list = registry.list().await.unwrap();
    assert_eq!((list.leases, list.bad), (vec![lease.into()], vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_etcd_is_distinguished_from_a_refusal() {
    let server = Server::start();
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.etcd().stop().unwrap();
    for error in [
        registry.config().await.map(drop).unwrap_err(),
        registry.list().await.map(drop).unwrap_err(),
        registry.create(subnet(2), &host(1), DAY).await.map(drop).unwrap_err(),
        registry.update(&lease, &host(2), DAY).await.map(drop).unwrap_err(),
        registry.renew(&lease, DAY).await.map(drop).unwrap_err(),
        registry.delete(&lease).await.unwrap_err(),
    ] {
        assert!(matches!(error, RegistryError::Unavailable(..)), "{error:?}");
        let text = flannel_core::chain(&error);
        assert!(text.contains("refused") && text.contains(&server.url()), "{text}");
    }
    server.etcd().restart().unwrap();
    registry.renew(&lease, DAY).await.unwrap();
    for command in ["user add root:secret", "user grant-role root root", "auth enable"] {
        server.ctl(&command.split(' ').collect::<Vec<_>>());
    }
    for error in [
        registry.config().await.map(drop).unwrap_err(),
        registry.create(subnet(2), &host(1), DAY).await.map(drop).unwrap_err(),
        registry.delete(&lease).await.unwrap_err(),
    ] {
        assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
        assert!(flannel_core::chain(&error).contains("user name is empty"), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_a_response_may_be_applied() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    let registry = Etcd3Registry::new(options).unwrap();
    let lease = lose_response(&proxy, &registry).await;
    assert!(matches!(&lease, Err(RegistryError::Unknown(taken, _)) if *taken == subnet(1)), "{lease:?}");
    let written = only(&server.registry()).await;
    assert_eq!(written.attrs, host(1));
    // The record is attached to its etcd lease, which must not have been revoked.
    server.registry().renew(&written, DAY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_a_response_is_recognised_at_the_next_member() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url(), server.url()];
    // The first member to ask is chosen at random.
    let registry = loop {
        let registry = Etcd3Registry::new(options.clone()).unwrap();
        registry.config().await.unwrap();
        if proxy.connections() > 0 {
            break registry;
        }
    };
    let lease = lose_response(&proxy, &registry).await.unwrap();
    assert_eq!(registry.calls().txn, 2);
    assert_eq!(only(&server.registry()).await, lease);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_changes_during_its_removal_stays() {
    let server = Server::start();
    let proxy = Proxy::to(server.address()).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url()];
    let (slow, fast) = (Etcd3Registry::new(options).unwrap(), server.registry());
    let lease = fast.create(subnet(1), &host(1), DAY).await.unwrap();
    slow.config().await.unwrap();
    let change = async {
        while slow.calls().range == 1 {
            tokio::task::yield_now().await;
        }
        // The response to the first call of `delete` takes longer than this.
        fast.update(&lease, &host(2), DAY).await.unwrap()
    };
    let (removed, changed) = join(slow.delete(&lease), change).await;
    assert!(matches!(removed, Err(RegistryError::Changed(_))), "{removed:?}");
    assert_eq!(only(&fast).await, changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_stops_is_never_taken_for_a_lost_lease() {
    let server = std::sync::Arc::new(Server::start());
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let renewing = async {
        let (mut renewed, mut failed) = (0, 0);
        // Until the lease is renewed after failures.
        while failed == 0 || renewed == 0 {
            match registry.renew(&lease, DAY).await {
                Ok(_) if failed == 0 => tokio::task::yield_now().await,
                Ok(_) => renewed += 1,
                Err(RegistryError::Unavailable(..)) => failed += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let restarting = tokio::task::spawn_blocking({
        let server = std::sync::Arc::clone(&server);
        move || {
            server.etcd().stop().unwrap();
            server.etcd().restart().unwrap();
        }
    });
    join(renewing, async { restarting.await.unwrap() }).await;
    assert_eq!(only(&registry).await, lease);
}

/// Creates a lease, and loses the response to its transaction.
async fn lose_response(proxy: &Proxy, registry: &Etcd3Registry) -> Result<Lease, RegistryError> {
    let lose = async {
        while registry.calls().txn == 0 {
            tokio::task::yield_now().await;
        }
        proxy.drop_responses();
    };
    join(registry.create(subnet(1), &host(1), DAY), lose).await.0
}

async fn only(registry: &Etcd3Registry) -> Lease {
    let mut leases = registry.list().await.unwrap().leases;
    assert_eq!(leases.len(), 1);
    Lease::clone(&leases.remove(0))
}

/// Returns the id of the only lease in etcd.
fn only_lease(server: &Server) -> String {
    let list = server.ctl(&["lease", "list"]);
    let (count, id) = list.split_once('\n').unwrap();
    assert_eq!(count, "found 1 leases");
    id.to_owned()
}
