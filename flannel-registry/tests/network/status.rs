//! Status of a network.

use std::time::Duration;

use flannel_core::{ConditionName, NetworkEvent, NetworkStatus, PeerState};
use flannel_testing::FakeBackend;
use tokio::time::sleep;

use crate::site::*;

/// The state and age in seconds of the peers, by the last byte of their addresses.
fn each(status: &NetworkStatus) -> Vec<(u8, PeerState, u64)> {
    let peers = status.peers.each.as_ref().unwrap();
    let peer = |peer: &flannel_core::PeerStatus| {
        (peer.public.v4.unwrap().octets()[3], peer.state, peer.known_for.as_secs())
    };
    peers.iter().map(peer).collect()
}

#[tokio::test(start_paused = true)]
async fn status_shows_the_age_and_state_of_each_peer() {
    use PeerState::{Pending, Programmed};
    let site = site();
    site.peer("10.5.2.0-24", 2);
    let host = FakeBackend::new();
    host.refuse(key("10.5.3.0-24"), true);
    let mut node = start_on(manager(&site.faulty), host, 1, None);
    assert_eq!(node.network.status().peers.known, 0);
    node.is_ready().await;
    sleep(Duration::from_secs(100)).await;
    site.peer("10.5.3.0-24", 3);
    sleep(Duration::from_secs(10)).await;
    // A change of its attributes does not reset its age.
    site.peer("10.5.2.0-24", 22);
    sleep(MOMENT).await;
    let status = node.network.status();
    let seconds = each(&status)[0].2;
    assert!((110..=110 + MOMENT.as_secs()).contains(&seconds), "{seconds}");
    assert_eq!(each(&status), [(22, Programmed, seconds), (3, Pending, seconds - 100)]);
    let waits = &status.peers.each.as_ref().unwrap()[1];
    assert_eq!(waits.reason.as_deref(), Some("operation not permitted"));
    assert_eq!((status.peers.known, status.peers.programmed, status.peers.pending), (2, 1, 1));
    assert_eq!(status.conditions[0].name, ConditionName::ObjectsFailed);
    assert!(!status.is_in_order());
    assert_eq!(status.errors.last().unwrap().what, "peer 10.5.3.0-24: operation not permitted");

    node.host.refuse(key("10.5.3.0-24"), false);
    site.store.remove_raw("10.5.2.0-24");
    sleep(MOMENT).await;
    let status = node.network.status();
    assert_eq!(each(&status), [(3, Programmed, each(&status)[0].2)]);
    assert_eq!((status.conditions.clone(), status.is_in_order()), (vec![], true));
    assert_eq!(status.errors.len(), 1, "a past error stays in the list");
    let summary = node.network.summary();
    assert_eq!((summary.peers.known, summary.peers.each), (1, None));
}

#[tokio::test(start_paused = true)]
async fn status_shows_the_duration_of_an_outage() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    let available = node.network.status().registry;
    assert_eq!((available.unavailable, available.unavailable_for, available.complete), (None, None, true));
    assert!(available.revision.is_some() && available.last_contact_age.is_some());
    site.faulty.stop_responding();
    node.sees("silence", |event| matches!(event, NetworkEvent::RegistryUnavailable(_)).then_some(())).await;
    sleep(Duration::from_secs(3600)).await;
    let status = node.network.status();
    assert_eq!(status.registry.unavailable_for.unwrap().as_secs(), 3600);
    assert_eq!(status.conditions[0].name, ConditionName::RegistryUnavailable);
    assert!(status.is_in_order(), "traffic goes on");
    site.faulty.resume_responding();
    node.sees("the registry", |event| matches!(event, NetworkEvent::RegistryAvailable).then_some(())).await;
    let status = node.network.status();
    assert_eq!((status.registry.unavailable_for, status.conditions), (None, vec![]));
}

#[tokio::test(start_paused = true)]
async fn status_shows_renewal_and_expiry_of_the_lease() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    sleep(MOMENT).await;
    let lease = node.network.status().lease.unwrap();
    assert_eq!((lease.subnet, lease.lost, lease.permanent), (node.subnet(), None, false));
    let renewal = lease.renewal_in.unwrap();
    assert!((DAY / 4..DAY).contains(&renewal), "{renewal:?}");
    sleep(DAY).await;
    let lease = node.network.status().lease.unwrap();
    assert!((DAY / 2..=DAY).contains(&lease.ends_in.unwrap()), "{:?}", lease.ends_in);
}

/// The number of stored errors is bounded, regardless of their frequency and variety.
#[tokio::test(start_paused = true)]
async fn status_keeps_a_bounded_number_of_errors() {
    let site = site();
    let mut node = start(&site.faulty, 1, None);
    node.is_ready().await;
    for _ in 0..3 {
        site.faulty.stop_responding();
        node.sees("silence", |event| matches!(event, NetworkEvent::RegistryUnavailable(_)).then_some(()))
            .await;
        site.faulty.resume_responding();
        node.sees("the registry", |event| matches!(event, NetworkEvent::RegistryAvailable).then_some(()))
            .await;
    }
    let errors = node.network.status().errors;
    assert_eq!((errors.len(), errors[0].times), (1, 3));
    for n in 0..100 {
        site.store.put_raw(&format!("garbage-{n}"), b"x");
    }
    sleep(MOMENT).await;
    let errors = node.network.status().errors;
    assert_eq!(errors.len(), NetworkStatus::PAST_ERRORS);
    assert!(errors.last().unwrap().what.contains("garbage-99"), "{errors:?}");
}
