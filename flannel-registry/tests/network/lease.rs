//! Renewal, loss and reacquisition of the own lease.

use std::net::Ipv4Addr;

use flannel_core::{NetworkEvent, Phase};
use flannel_testing::{BackendCall, Call};
use tokio::time::sleep;

use crate::site::*;

#[tokio::test(start_paused = true)]
async fn a_network_renews_its_lease_for_weeks_without_events_for_its_peers() {
    let site = site();
    let mut one = start(&site.faulty, 1, None);
    one.is_ready().await;
    let mut two = start(&site.faulty, 2, None);
    two.is_ready().await;
    sleep(MOMENT).await;
    let passes = one.host.syncs_with_writes();
    let seen = one.within(DAY * 14).await;
    let renewals = seen.iter().filter(|event| matches!(event, NetworkEvent::LeaseRenewed(_))).count();
    assert!((42..48).contains(&renewals), "{renewals}");
    assert_eq!(one.host.syncs_with_writes(), passes);
    assert_eq!(site.subnets().await.len(), 2);
    assert_eq!((site.faulty.count(Call::List), site.faulty.count(Call::Watch)), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_does_not_stop_traffic_and_its_subnet_is_acquired_again() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let (subnet, passes) = (node.subnet(), node.host.syncs_with_writes());
    site.store.remove_raw(&subnet.to_string());
    node.sees("the loss", |event| matches!(event, NetworkEvent::LeaseLost(_)).then_some(())).await;
    let acquired = |event: &NetworkEvent| match event {
        NetworkEvent::LeaseAcquired(lease) => Some(lease.subnet),
        _ => None,
    };
    assert_eq!(node.sees("a lease", acquired).await, subnet);
    assert_eq!(site.subnets().await[&subnet], Ipv4Addr::new(192, 168, 0, 1).into());
    assert_eq!(
        (node.host.syncs_with_writes(), node.host.peers().len()),
        (passes, 1),
        "the host was left alone"
    );
    assert_eq!(node.network.status().lease.unwrap().lost, None);
    let configured = BackendCall::Configured(subnet);
    assert_eq!(node.host.calls().iter().filter(|call| **call == configured).count(), 1);
    // It is renewed from now on.
    sleep(DAY * 3).await;
    assert!(site.subnets().await.contains_key(&subnet));
}

#[tokio::test(start_paused = true)]
async fn an_overwritten_lease_is_replaced_by_another() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let stolen = node.subnet();
    site.peer(&stolen.to_string(), 66);
    let reason = node.sees("the loss", |event| match event {
        NetworkEvent::LeaseLost(reason) => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.await.contains("192.168.0.66"));
    node.is_ready().await;
    assert_ne!(node.subnet(), stolen);
    assert_eq!(node.host.calls().iter().filter(|call| matches!(call, BackendCall::Configured(_))).count(), 2);
    sleep(MOMENT).await;
    assert_eq!(node.host.peers(), [(stolen, host(66))].into(), "the other host is a peer now");
    assert_eq!(node.network.ready().await.unwrap().lease.subnet, node.subnet());
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_that_cannot_be_acquired_again_ends_nothing() {
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let subnet = node.subnet();
    site.peer("10.5.0.0-16", 3);
    site.store.remove_raw(&subnet.to_string());
    for _ in 0..20 {
        node.sees("waiting", |event| match event {
            NetworkEvent::Waiting { phase: Phase::Lease, reason, .. }
                if reason.contains("out of subnets") =>
            {
                Some(())
            }
            _ => None,
        })
        .await;
    }
    let status = node.network.status();
    let lease = status.lease.unwrap();
    assert!(lease.lost.is_some() && status.ready);
    assert_eq!(lease.subnet, subnet, "it is still asked for");
    assert!(node.host.peers().contains_key(&key("10.5.2.0-24")));
    site.store.remove_raw("10.5.0.0-16");
    node.sees("a lease", |event| matches!(event, NetworkEvent::LeaseAcquired(_)).then_some(())).await;
    assert_eq!(node.subnet(), subnet);
}
