//! Records in etcd.

use std::time::Duration;

use flannel_core::{
    BackendAttrs, BackendType, Json, Lease, RegistryError, RegistryEvent, SubnetRegistry, Term, chain,
};
use flannel_registry::Etcd2Registry;
use futures::future::join;

use crate::common::proxy::Proxy;
use crate::common::{DAY, PREFIX, host, next, subnet, subnet_key, until, words};
use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_values_match_upstream_byte_for_byte() {
    let server = Server::start();
    let registry = server.registry();
    let data = Json::parse(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#).unwrap();
    let vxlan = BackendAttrs::new(BackendType::VXLAN).with_data(Some(data)).at(host(3).public);
    let mut dual = vxlan.clone();
    dual.public.v6 = Some("fd00::1".parse().unwrap());
    let data = Json::parse(r#""a=b+c & 100% <é>""#).unwrap();
    let extension = BackendAttrs::new("extension".to_owned().into()).with_data(Some(data)).at(host(9).public);
    registry.create(subnet(1), &vxlan, DAY).await.unwrap();
    registry.create("10.5.2.0-24&fc00:0:0:1::-64".parse().unwrap(), &dual, DAY).await.unwrap();
    registry.create(subnet(3), &extension, DAY).await.unwrap();

    let listed = server.ctl(&["ls", "--recursive", "-p", "--sort", PREFIX]);
    let expected = [
        "/coreos.com/network/subnets/",
        "/coreos.com/network/subnets/10.5.1.0-24",
        "/coreos.com/network/subnets/10.5.2.0-24&fc00:0:0:1::-64",
        "/coreos.com/network/subnets/10.5.3.0-24",
    ];
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
    for (name, record) in [
        (
            "10.5.1.0-24",
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        ),
        (
            "10.5.2.0-24&fc00:0:0:1::-64",
            r#"{"PublicIP":"192.168.0.3","PublicIPv6":"fd00::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        ),
        (
            "10.5.3.0-24",
            r#"{"PublicIP":"192.168.0.9","PublicIPv6":null,"BackendType":"extension","BackendData":"a=b+c \u0026 100% \u003cé\u003e"}"#,
        ),
    ] {
        assert_eq!(server.ctl(&["get", &subnet_key(name)]), record);
    }
    let raw = server.http().request("GET", &subnet_key("10.5.1.0-24"), "");
    // The remaining TTL of a day.
    assert!([r#""ttl":864"#, r#""ttl":863"#].iter().any(|ttl| raw.contains(ttl)), "{raw}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_changes_the_index_but_not_the_revision_and_sends_no_event() {
    let server = Server::start();
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), Duration::from_secs(100)).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    for _ in 0..3 {
        assert_eq!(registry.renew(&lease, DAY).await.unwrap(), DAY);
    }
    let raw = server.http().request("GET", &subnet_key("10.5.1.0-24"), "");
    let index = lease.revision.0 + 3;
    assert!(raw.contains(&format!(r#""ttl":86400,"modifiedIndex":{index},"#)), "{raw}");
    assert_eq!(only(&registry).await, lease);
    server.put("10.5.9.0-24", br#"{"PublicIP":"192.168.0.9"}"#);
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["put 10.5.9.0-24"]);
    assert_eq!(registry.calls().writes, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_renewed_by_another_process_is_unchanged() {
    let server = Server::start();
    let (one, other) = (server.registry(), server.registry());
    let lease = one.create(subnet(1), &host(1), DAY).await.unwrap();
    let seen = only(&other).await;
    one.renew(&lease, DAY).await.unwrap();
    assert_eq!(only(&other).await, seen);
    other.renew(&seen, DAY).await.unwrap();
    // A renewal sends no event.
    one.renew(&lease, DAY).await.unwrap();
    let updated = one.update(&lease, &host(2), DAY).await.unwrap();
    assert!(matches!(other.renew(&seen, DAY).await, Err(RegistryError::Changed(_))));
    assert!(matches!(other.delete(&seen).await, Err(RegistryError::Changed(_))));
    let seen = only(&other).await;
    assert_eq!((&seen.attrs, seen.revision), (&host(2), updated.revision));
    one.renew(&updated, DAY).await.unwrap();
    other.delete(&seen).await.unwrap();
    assert!(matches!(one.renew(&updated, DAY).await, Err(RegistryError::Gone(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_value_written_by_another_process_is_a_change() {
    let server = Server::start();
    let registry = server.registry();
    let key = subnet_key("10.5.1.0-24");
    for command in ["set", "update"] {
        let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
        registry.renew(&lease, DAY).await.unwrap();
        // `update` keeps the index at which the key was created, and makes it permanent.
        server.ctl(&[command, &key, &lease.attrs.to_record()]);
        assert!(matches!(registry.renew(&lease, DAY).await, Err(RegistryError::Changed(_))), "{command}");
        let found = only(&registry).await;
        assert_eq!(found.term, Term::Permanent);
        assert!(found.revision > lease.revision);
        registry.delete(&found).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_never_gets_a_ttl() {
    let server = Server::start();
    let registry = server.registry();
    server.ctl(&["set", &subnet_key("10.5.1.0-24"), r#"{"PublicIP":"192.168.0.1"}"#]);
    let reservation = only(&registry).await;
    assert_eq!(reservation.term, Term::Permanent);
    let updated = registry.update(&reservation, &host(1), DAY).await.unwrap();
    let before = registry.calls().writes;
    registry.renew(&updated, DAY).await.unwrap();
    assert_eq!(registry.calls().writes, before, "there is nothing to renew");
    assert_eq!(only(&registry).await, updated);
    let raw = server.http().request("GET", &subnet_key("10.5.1.0-24"), "");
    assert!(!raw.contains("ttl") && !raw.contains("expiration"), "{raw}");
    server.put("10.5.1.0-24", br#"{"PublicIP":"192.168.0.2"}"#);
    assert!(matches!(registry.renew(&updated, DAY).await, Err(RegistryError::Changed(_))));
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_makes_one_call_even_if_empty() {
    let server = Server::start();
    let registry = server.registry();
    server.ctl(&["set", "/something", "else"]);
    let list = registry.list().await.unwrap();
    assert!(list.leases.is_empty() && list.revision.0 > 0, "{list:?}");
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    registry.delete(&lease).await.unwrap();
    assert!(registry.list().await.unwrap().leases.is_empty(), "the directory is still there");
    for third in 0..250 {
        server.put(&subnet(third).to_string(), host(third).to_record().as_bytes());
    }
    let before = registry.calls();
    assert_eq!(registry.list().await.unwrap().leases.len(), 250);
    assert_eq!(registry.calls().reads - before.reads, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_place_of_a_record_is_named_and_blocks_the_subnet() {
    let server = Server::start();
    let registry = server.registry();
    server.ctl(&["mkdir", &subnet_key("10.5.1.0-24")]);
    server.ctl(&["mkdir", &subnet_key("empty")]);
    server.put("old/deep/10.5.3.0-24", br#"{"PublicIP":"192.168.0.1"}"#);
    server.put("10.5.2.0-24", b"");
    let good = registry.create(subnet(3), &host(3), DAY).await.unwrap();
    let mut list = registry.list().await.unwrap();
    assert_eq!(list.leases, [good.into()]);
    list.bad.sort();
    let bad: Vec<_> = list.bad.iter().map(|record| (record.key.as_str(), record.subnet)).collect();
    let expected =
        [("10.5.1.0-24", Some(subnet(1))), ("10.5.2.0-24", Some(subnet(2))), ("old/deep/10.5.3.0-24", None)];
    assert_eq!(bad, expected);
    let taken = registry.create(subnet(1), &host(1), DAY).await;
    assert!(matches!(taken, Err(RegistryError::Exists(_))), "{taken:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_the_wrong_kind_are_refused_with_a_fix() {
    let server = Server::start();
    let at = |prefix: &str| {
        let mut options = server.options();
        options.prefix = prefix.to_owned();
        Etcd2Registry::new(options).unwrap()
    };
    server.ctl(&["set", "/a/config/x", "1"]);
    server.ctl(&["set", "/a/subnets", "1"]);
    server.ctl(&["set", "/b", "1"]);
    for (error, text) in [
        (at("/a").config().await.map(drop), "ETCDCTL_API=2 etcdctl rm --recursive /a/config"),
        (at("/a").list().await.map(drop), "ETCDCTL_API=2 etcdctl rm /a/subnets"),
        (at("/a").create(subnet(1), &host(1), DAY).await.map(drop), "/a/subnets is a value"),
        (at("/b").config().await.map(drop), "/b is a value"),
        (at("/b").list().await.map(drop), "/b is a value"),
    ] {
        let error = error.unwrap_err();
        assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
        assert!(chain(&error).contains(text), "{text:?} is not in {:?}", chain(&error));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_config_written_later_is_read() {
    let server = Server::start();
    let mut options = server.options();
    options.prefix = "a b/é".to_owned();
    let registry = Etcd2Registry::new(options).unwrap();
    assert_eq!(registry.config().await.unwrap(), None);
    server.ctl(&["set", "/a b/é/config", r#"{"Network":"10.5.0.0/16"}"#]);
    assert_eq!(registry.config().await.unwrap().as_deref(), Some(r#"{"Network":"10.5.0.0/16"}"#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_without_the_v2_interface_is_named() {
    let server = Server::start_without_v2();
    let registry = server.registry();
    for error in [
        registry.config().await.map(drop).unwrap_err(),
        registry.list().await.map(drop).unwrap_err(),
        registry.create(subnet(1), &host(1), DAY).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
        let text = chain(&error);
        assert!(text.contains("--enable-v2=true") && text.contains(&server.url()), "{text}");
    }
    let mut watch = registry.watch(None);
    let silent = next(&mut watch).await;
    assert!(
        matches!(&silent, RegistryEvent::Unavailable(reason) if reason.contains("--enable-v2")),
        "{silent:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unavailable_etcd_writes_nothing() {
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
        let text = chain(&error);
        assert!(text.contains("refused") && text.contains(&server.url()), "{text}");
    }
    server.etcd().restart().unwrap();
    registry.renew(&lease, DAY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_without_a_response_may_be_applied_and_is_not_repeated() {
    let server = Server::start();
    let address = server.etcd().client_address();
    let proxy = Proxy::to(address).await;
    let mut options = server.options();
    options.endpoints = vec![proxy.url(), server.url()];
    // The first member to ask is chosen at random.
    let registry = loop {
        let registry = Etcd2Registry::new(options.clone()).unwrap();
        let lease = registry.create(subnet(9), &host(9), DAY).await.unwrap();
        registry.delete(&lease).await.unwrap();
        if proxy.connections() > 0 {
            break registry;
        }
    };
    let before = registry.calls().writes;
    let (subnet, attrs) = (subnet(1), host(1));
    let lose = async {
        while registry.calls().writes == before {
            tokio::task::yield_now().await;
        }
        proxy.drop_responses();
    };
    let (lease, ()) = join(registry.create(subnet, &attrs, DAY), lose).await;
    assert!(matches!(&lease, Err(RegistryError::Unknown(taken, _)) if *taken == subnet), "{lease:?}");
    assert_eq!(registry.calls().writes - before, 1);
    // The next call goes to the other member, and the lease read there is valid for writes.
    let written = only(&registry).await;
    assert_eq!(written.attrs, attrs);
    registry.renew(&written, DAY).await.unwrap();
}

#[test]
fn a_registry_describes_its_endpoints_and_how_to_configure_it() {
    let mut options = flannel_registry::Etcd2Options::default();
    options.endpoints = vec!["10.0.0.1:2379".to_owned(), "https://[::1]:2379/".to_owned(), " ".to_owned()];
    options.prefix = "net".to_owned();
    options.password = "secret".to_owned();
    assert!(!format!("{options:?}").contains("secret"));
    let registry = Etcd2Registry::new(options).unwrap();
    assert!(!format!("{registry:?}").contains("secret"));
    assert_eq!(registry.describe(), "etcd v2 at http://10.0.0.1:2379, https://[::1]:2379");
    assert_eq!(
        registry.how_to_configure(),
        r#"ETCDCTL_API=2 etcdctl set /net/config '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'"#
    );
}

async fn only(registry: &Etcd2Registry) -> Lease {
    let mut leases = registry.list().await.unwrap().leases;
    assert_eq!(leases.len(), 1);
    Lease::clone(&leases.remove(0))
}
