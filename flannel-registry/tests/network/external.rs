//! Changes of the external interface.

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{ConditionName, ExternalUpdate, Lease, NetworkEvent, Phase, PublicAddrs};
use flannel_testing::{BackendCall, Call, InjectedFault};
use tokio::time::sleep;

use crate::site::*;

/// Returns running host 1 with a peer.
async fn running(site: &Site) -> Node {
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    node
}

fn published(event: &NetworkEvent) -> Option<Lease> {
    if let NetworkEvent::LeasePublished(lease) = event { Some(lease.clone()) } else { None }
}

fn public(last: u8) -> PublicAddrs {
    Ipv4Addr::new(192, 168, 0, last).into()
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_published_in_the_same_lease() {
    let site = site();
    let mut node = running(&site).await;
    let subnet = node.subnet();
    node.moves.send(external(77).into()).unwrap();
    let lease = node.sees("the publication", published).await;
    assert_eq!((lease.subnet, lease.attrs.public), (subnet, public(77)));
    assert_eq!((site.subnets().await[&subnet], site.subnets().await.len()), (public(77), 2));
    assert_eq!(node.network.lease(), Some(lease.clone()));
    assert_eq!(node.network.ready().await.unwrap().lease, lease);
    assert!(node.host.calls().contains(&BackendCall::InterfaceUpdated("eth0".to_owned())));
    assert_eq!((site.faulty.count(Call::Update), site.faulty.count(Call::List)), (1, 1), "one write");
    // It is renewed from now on.
    let seen = node.within(DAY * 3).await;
    assert!(!seen.iter().any(|event| matches!(event, NetworkEvent::LeaseLost(_))), "{seen:?}");
    assert_eq!(site.subnets().await[&subnet], public(77));
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_address_is_not_written() {
    let site = site();
    let mut node = running(&site).await;
    node.moves.send(external(1).into()).unwrap();
    let mut another_index = external(1);
    another_index.index = 9;
    node.moves.send(another_index.into()).unwrap();
    let seen = node.within(MOMENT).await;
    let moved = seen.iter().filter(|event| matches!(event, NetworkEvent::ExternalChanged(_))).count();
    assert_eq!((moved, site.faulty.count(Call::Update)), (1, 0), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_address_is_published_after_an_outage() {
    let site = site();
    let mut node = running(&site).await;
    let subnet = node.subnet();
    site.faulty.stop_responding();
    node.moves.send(external(77).into()).unwrap();
    let waits = |event: &NetworkEvent| match event {
        NetworkEvent::Waiting { phase: Phase::Lease, retry_in, .. } => Some(*retry_in),
        _ => None,
    };
    assert!(node.sees("the wait", waits).await <= Duration::from_millis(200), "soon, at first");
    assert!(
        node.host.calls().contains(&BackendCall::InterfaceUpdated("eth0".to_owned())),
        "the host does not wait"
    );
    sleep(DAY / 2).await;
    site.faulty.resume_responding();
    node.sees("the publication", published).await;
    assert_eq!(site.subnets().await[&subnet], public(77));
}

#[tokio::test(start_paused = true)]
async fn a_write_without_a_response_is_checked() {
    for fault in [InjectedFault::AnswerLost, InjectedFault::RequestLost] {
        let site = site();
        let mut node = running(&site).await;
        let subnet = node.subnet();
        site.faulty.fail_next(Call::Update, [fault]);
        node.moves.send(external(77).into()).unwrap();
        let at_once = |event: &NetworkEvent| match event {
            NetworkEvent::LeasePublished(lease) => Some(Some(lease.subnet)),
            NetworkEvent::Waiting { .. } => Some(None),
            _ => None,
        };
        assert_eq!(node.sees("the publication", at_once).await, Some(subnet), "{fault:?}");
        assert_eq!((site.subnets().await[&subnet], site.subnets().await.len()), (public(77), 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_host_took_is_left_to_it() {
    let site = site();
    let mut node = running(&site).await;
    let subnet = node.subnet();
    site.faulty.stop_responding();
    site.peer(&subnet.to_string(), 66);
    node.moves.send(external(77).into()).unwrap();
    sleep(MOMENT).await;
    site.faulty.resume_responding();
    let acquired = |event: &NetworkEvent| match event {
        NetworkEvent::LeaseAcquired(lease) if lease.subnet != subnet => Some(lease.clone()),
        _ => None,
    };
    let lease = node.sees("another lease", acquired).await;
    assert_eq!((site.subnets().await[&subnet], lease.attrs.public), (public(66), public(77)));
}

#[tokio::test(start_paused = true)]
async fn the_last_of_several_addresses_wins() {
    let site = site();
    let mut node = running(&site).await;
    let subnet = node.subnet();
    site.faulty.stop_responding();
    for last in [77, 78, 79] {
        node.moves.send(external(last).into()).unwrap();
        sleep(MOMENT).await;
    }
    site.faulty.resume_responding();
    node.sees("the publication", published).await;
    sleep(MOMENT).await;
    assert_eq!((site.subnets().await[&subnet], site.subnets().await.len()), (public(79), 2));
}

#[tokio::test(start_paused = true)]
async fn a_changed_mtu_is_reported_without_a_registry_call() {
    let site = site();
    let mut node = running(&site).await;
    let mut another_mtu = external(1);
    another_mtu.mtu = 9000;
    node.moves.send(another_mtu.into()).unwrap();
    let mtu =
        |event: &NetworkEvent| if let NetworkEvent::MtuChanged(mtu) = event { Some(*mtu) } else { None };
    assert_eq!(node.sees("the MTU", mtu).await, 8950);
    assert_eq!(node.network.status().mtu, Some(8950));
    assert_eq!(node.network.ready().await.unwrap().mtu, 8950);
    assert_eq!(site.faulty.count(Call::Update), 0);
}

#[tokio::test(start_paused = true)]
async fn an_unusable_interface_changes_nothing() {
    let site = site();
    let mut node = running(&site).await;
    let subnet = node.subnet();
    node.host.fail_open("it has no address");
    node.moves.send(external(77).into()).unwrap();
    let failed = |event: &NetworkEvent| match event {
        NetworkEvent::ObjectFailed(failure) => Some((failure.object.clone(), failure.reason.clone())),
        _ => None,
    };
    let expected = ("interface eth0".to_owned(), "it has no address".to_owned());
    assert_eq!(node.sees("the reason", failed).await, expected);
    sleep(MOMENT).await;
    assert_eq!(site.subnets().await[&subnet], public(1));
    assert!(node.network.status().ready);
}

#[tokio::test(start_paused = true)]
async fn a_lost_interface_is_a_condition_until_it_is_back_and_removes_nothing() {
    let site = site();
    let mut node = running(&site).await;
    assert!(node.network.status().is_in_order());
    let lost = || ExternalUpdate::Lost("eth0 has no address".to_owned());
    node.moves.send(lost()).unwrap();
    node.moves.send(lost()).unwrap();
    let events = node.within(MOMENT).await;
    let seen = |event: &&NetworkEvent| matches!(event, NetworkEvent::ExternalLost(_));
    assert_eq!(events.iter().filter(seen).count(), 1, "{events:?}");
    let status = node.network.status();
    let names: Vec<_> = status.conditions.iter().map(|condition| condition.name).collect();
    assert_eq!((names, status.is_in_order()), (vec![ConditionName::ExternalLost], false));
    assert_eq!((status.external.name.as_str(), node.host.peers().len()), ("eth0", 1));
    node.moves.send(external(1).into()).unwrap();
    node.sees("the interface", |event| matches!(event, NetworkEvent::ExternalChanged(_)).then_some(())).await;
    assert!(node.network.status().is_in_order());
}
