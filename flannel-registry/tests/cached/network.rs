//! Networks that start without their registry.

use std::time::Duration;

use flannel_core::{ExternalInterface, Network, NetworkEvent, NetworkOptions};
use flannel_testing::FakeBackend;
use futures::{Stream, StreamExt};
use tokio::time::{sleep, timeout};

use crate::site::{MOMENT, OWN, Site, host, key};

const PEERS: &[(&str, u8)] = &[("10.5.2.0-24", 2), ("10.5.3.0-24", 3), ("10.5.4.0-24", 4)];

struct Running {
    network: Network,
    events: Box<dyn Stream<Item = NetworkEvent> + Send + Unpin>,
    host: FakeBackend,
}

fn run(site: &Site) -> Running {
    let external = ExternalInterface::new("eth0", 2, 1500, host(1).public);
    let host = FakeBackend::new();
    host.add_leftover(key("10.5.200.0-24"), crate::site::host(200));
    let mut options = NetworkOptions::new(site.manager().0, host.clone(), external);
    options.previous = Some(key(OWN));
    options.seed = Some(3);
    let (network, task) = Network::new(options);
    let events = Box::new(network.events());
    tokio::spawn(task.run());
    Running { network, events, host }
}

impl Running {
    async fn sees(&mut self, is_it: impl Fn(&NetworkEvent) -> bool) -> NetworkEvent {
        let seen = async {
            loop {
                let event = self.events.next().await.expect("the network keeps running");
                if is_it(&event) {
                    return event;
                }
            }
        };
        timeout(MOMENT * 5, seen).await.expect("it happens")
    }

    fn peers(&self) -> Vec<String> {
        self.host.peers().into_keys().map(|subnet| subnet.to_string()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_is_ready_from_the_cache_removes_nothing_and_converges_later() {
    let site = Site::after_a_run(PEERS).await;
    site.faulty.stop_responding();
    let mut running = run(&site);
    running.sees(|event| matches!(event, NetworkEvent::Ready)).await;
    let status = running.network.status();
    assert!(
        status.ready
            && status.registry.peers_from_cache.is_some_and(|reason| reason.contains("connection refused"))
    );
    assert_eq!(running.network.lease().unwrap().subnet, key(OWN));
    sleep(MOMENT).await;
    let kept = ["10.5.2.0-24", "10.5.3.0-24", "10.5.4.0-24", "10.5.200.0-24"];
    assert_eq!(running.peers(), kept, "objects missing from the cache may still be right");

    site.revoke("10.5.2.0-24").await;
    site.peer("10.5.5.0-24", 5);
    site.faulty.resume_responding();
    running.sees(|event| matches!(event, NetworkEvent::PeersConfirmed)).await;
    sleep(MOMENT).await;
    assert_eq!(running.peers(), ["10.5.3.0-24", "10.5.4.0-24", "10.5.5.0-24"]);
    let status = running.network.status();
    let (registry, lease) = (status.registry, status.lease.unwrap());
    assert_eq!((registry.peers_from_cache, registry.unavailable, lease.lost), (None, None, None));
}

#[tokio::test(start_paused = true)]
async fn a_subnet_that_another_host_took_is_given_up_with_a_clear_reason() {
    let site = Site::after_a_run(PEERS).await;
    site.revoke(OWN).await;
    site.peer(OWN, 9);
    site.faulty.stop_responding();
    let mut running = run(&site);
    running.sees(|event| matches!(event, NetworkEvent::Ready)).await;
    site.faulty.resume_responding();
    running.sees(|event| matches!(event, NetworkEvent::LeaseLost(reason) if reason.contains(OWN))).await;
    let moved = |event: &NetworkEvent| matches!(event, NetworkEvent::LeaseAcquired(lease) if lease.subnet != key(OWN));
    running.sees(moved).await;
    running.sees(|event| matches!(event, NetworkEvent::Ready)).await;
    sleep(MOMENT).await;
    assert!(running.peers().contains(&OWN.to_owned()), "the new holder is a peer: {:?}", running.peers());
}

#[tokio::test(start_paused = true)]
async fn peers_that_left_at_once_are_held_across_a_restart_for_a_bounded_time() {
    let site = Site::after_a_run(PEERS).await;
    for (subnet, _) in PEERS {
        site.revoke(subnet).await;
    }
    let mut running = run(&site);
    let held = running.sees(|event| matches!(event, NetworkEvent::PeersHeld { .. })).await;
    assert!(matches!(held, NetworkEvent::PeersHeld { peers: 3, at_most } if at_most.as_secs() == 300));
    running.sees(|event| matches!(event, NetworkEvent::Ready)).await;
    assert_eq!(running.network.status().peers.held, 3);
    site.peer("10.5.3.0-24", 3);
    sleep(Duration::from_secs(200)).await;
    assert_eq!(running.peers(), ["10.5.2.0-24", "10.5.3.0-24", "10.5.4.0-24"]);
    assert_eq!(running.network.status().peers.held, 2);
    running.sees(|event| matches!(event, NetworkEvent::HoldEnded { gone: 2 })).await;
    sleep(MOMENT).await;
    assert_eq!(running.peers(), ["10.5.3.0-24"]);
    assert_eq!(running.network.status().peers.held, 0);
}
