//! Changes of the network config at run time.

use std::time::Duration;

use flannel_core::{NetworkConfig, NetworkEvent, NetworkOptions, StaticLeaseManager, SubnetRegistry};
use flannel_testing::{BackendCall, Call, FakeBackend, InjectedFault};

use crate::site::{CONFIG, MOMENT, Node, external, host, key, manager, site, start, start_on};

const OTHER: &str = r#"{"Network":"10.4.0.0/15","Backend":{"Type":"other"}}"#;

async fn refused(node: &mut Node) -> String {
    node.sees("a refusal", |event| match event {
        NetworkEvent::ConfigRefused(reason) => Some(reason.clone()),
        _ => None,
    })
    .await
}

async fn reconfigured(node: &mut Node) {
    node.sees("the change", |event| matches!(event, NetworkEvent::Reconfigured(_)).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_config_is_applied_and_published() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let own = node.subnet();
    site.store.set_config(OTHER);
    reconfigured(&mut node).await;
    node.sees("the new record", |event| matches!(event, NetworkEvent::LeasePublished(_)).then_some(())).await;
    assert_eq!(node.subnet(), own, "containers have addresses of it");
    let leases = site.store.list().await.unwrap().leases;
    assert_eq!(
        leases.iter().map(|lease| lease.attrs.backend_type.to_string()).collect::<Vec<_>>(),
        ["other"]
    );
    let calls = node.host.calls();
    let at = calls.iter().position(|call| *call == BackendCall::Reconfigured("other".to_owned())).unwrap();
    assert_eq!(calls[at + 1], BackendCall::Configured(own));
    let running = node.network.ready().await.unwrap();
    assert_eq!(running.config.backend.name, "other");
    assert_eq!(node.network.summary().network.unwrap().networks, ["10.4.0.0/15"]);
    assert_eq!(site.faulty.count(Call::Config), 2, "a change costs one read");
}

#[tokio::test(start_paused = true)]
async fn an_invalid_missing_or_incompatible_config_is_reported_once() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    for (config, why) in [
        ("{", "unexpected end"),
        (r#"{"Network":"10.77.0.0/16","Backend":{"Type":"fake"}}"#, "is outside 10.77.0.0/16; restart"),
    ] {
        site.store.set_config(config);
        let reason = refused(&mut node).await;
        assert!(reason.contains(why), "{reason}");
        let status = node.network.summary();
        assert!(status.conditions.iter().any(|condition| condition.name.as_str() == "config_refused"));
        assert!(status.is_in_order(), "the host carries all its traffic");
        site.store.set_config(config);
        assert!(
            node.within(MOMENT).await.iter().all(|event| !matches!(event, NetworkEvent::ConfigRefused(_)))
        );
    }
    site.store.remove_config();
    assert!(refused(&mut node).await.contains("flannel config not found in memory"));
    assert_eq!(node.network.ready().await.unwrap().config.source.as_str(), CONFIG);
    site.store.set_config(CONFIG);
    node.within(MOMENT).await;
    assert!(node.network.summary().conditions.is_empty(), "it is as it was");
    assert!(node.host.calls().iter().all(|call| !matches!(call, BackendCall::Reconfigured(_))));
}

#[tokio::test(start_paused = true)]
async fn unsupported_changes_are_refused_and_kernel_errors_are_retried() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    node.host.fail_start(2, 1);
    site.store.set_config(OTHER);
    assert!(refused(&mut node).await.contains("cannot make the device"));
    reconfigured(&mut node).await;
    assert!(node.network.summary().network.unwrap().refused.is_none());
    node.host.fail_open("no such thing here");
    site.store.set_config(CONFIG);
    assert_eq!(refused(&mut node).await, "no such thing here");
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_registry_is_asked_again() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    site.faulty.fail_next(Call::Config, [InjectedFault::Unavailable; 3]);
    site.store.set_config(OTHER);
    reconfigured(&mut node).await;
    assert_eq!(site.faulty.count(Call::Config), 5);
}

#[tokio::test(start_paused = true)]
async fn a_change_during_the_start_is_not_missed() {
    let site = site();
    site.faulty.fail_next(Call::Create, [InjectedFault::Delayed(Duration::from_secs(5))]);
    let mut node = start(&site.faulty, 1, None);
    node.sees("the first configuration", |event| matches!(event, NetworkEvent::Configured(_)).then_some(()))
        .await;
    site.store.set_config(OTHER);
    reconfigured(&mut node).await;
}

#[tokio::test(start_paused = true)]
async fn a_network_that_does_not_follow_applies_the_config_on_request() {
    let site = site();
    let host = FakeBackend::new();
    let mut options = NetworkOptions::new(manager(&site.faulty), host.clone(), external(1));
    options.follow_config = false;
    let mut node = crate::site::start_with(options, host);
    node.is_ready().await;
    site.store.set_config(OTHER);
    assert!(refused(&mut node).await.starts_with("it waits for a reload"));
    node.network.reload().await;
    assert_eq!(node.network.ready().await.unwrap().config.backend.name, "other");
    reconfigured(&mut node).await;
    node.network.reload().await;
    assert_eq!(site.faulty.count(Call::Config), 4, "each reload reads once");
    site.faulty.fail_next(Call::Config, [InjectedFault::Unavailable]);
    node.network.reload().await;
    assert!(refused(&mut node).await.contains("does not answer"), "the caller waits for the result");
}

#[tokio::test(start_paused = true)]
async fn a_static_manager_may_change_the_config() {
    let parse = |text| NetworkConfig::parse(text).unwrap();
    let manager = StaticLeaseManager::new(parse(CONFIG), key("10.5.1.0-24")).unwrap();
    manager.set_peers([flannel_core::Lease::new(key("10.5.2.0-24"), host(2))]);
    let mut node = start_on(manager.clone(), FakeBackend::new(), 1, None);
    node.is_ready().await;
    assert!(manager.set_config(parse(r#"{"Network":"10.9.0.0/16"}"#)).is_err());
    manager.set_config(parse(OTHER)).unwrap();
    reconfigured(&mut node).await;
    node.sees("the new record", |event| matches!(event, NetworkEvent::LeasePublished(_)).then_some(())).await;
    assert_eq!(manager.lease().await.attrs.backend_type.to_string(), "other");
}

#[tokio::test(start_paused = true)]
async fn a_lease_lost_during_a_change_is_acquired_again() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let own = node.subnet();
    site.faulty.fail_next(Call::Create, [InjectedFault::Refused; 3]);
    site.store.remove_raw(&own.to_string());
    node.sees("the loss", |event| matches!(event, NetworkEvent::LeaseLost(_)).then_some(())).await;
    // The record would be unchanged, so only the loss causes a call.
    site.store.set_config(CONFIG.replace("10.5.0.0/16", "10.4.0.0/15"));
    reconfigured(&mut node).await;
    node.within(MOMENT).await;
    assert_eq!(site.subnets().await.into_keys().collect::<Vec<_>>(), [own]);
}
