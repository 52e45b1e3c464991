use std::net::Ipv4Addr;

use futures::FutureExt;

use super::*;

const OWN: &str = "10.5.1.0-24";
const A: &str = "10.5.2.0-24";
const B: &str = "10.5.3.0-24";

fn manager() -> StaticLeaseManager {
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).unwrap();
    StaticLeaseManager::new(config, OWN.parse().unwrap()).unwrap()
}

fn attrs(last: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 64, last).into())
}

fn lease(subnet: &str, last: u8) -> Lease {
    Lease::new(subnet.parse().unwrap(), attrs(last))
}

fn peers(manager: &StaticLeaseManager) -> BoxStream<'static, PeerEvent> {
    manager.watch(OWN.parse().unwrap())
}

/// Everything that a watch tells without waiting, in short.
fn told(watch: &mut BoxStream<'static, PeerEvent>) -> Vec<String> {
    let mut told = Vec::new();
    while let Some(Some(event)) = watch.next().now_or_never() {
        told.push(match event {
            PeerEvent::Changed(changes) => {
                let words = changes.iter().map(|change| match change {
                    LeaseChange::Put(lease) => format!("+{}@{}", lease.subnet, lease.attrs.public),
                    LeaseChange::Removed(subnet) => format!("-{subnet}"),
                });
                words.collect::<Vec<_>>().join(" ")
            }
            PeerEvent::Complete => "complete".to_owned(),
            PeerEvent::RegistryUnavailable(reason) => reason,
            PeerEvent::RegistryAvailable => "heard".to_owned(),
            PeerEvent::FromCache(_) | PeerEvent::CacheRejected(_) | PeerEvent::Bad(_) => "?".to_owned(),
        });
    }
    told
}

#[test]
fn peers_are_complete_once_all_of_them_were_told() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.put_peer(lease(A, 2));
    assert_eq!(told(&mut watch), ["+10.5.2.0-24@192.168.64.2"]);
    manager.remove_peer(&B.parse().unwrap());
    assert_eq!(told(&mut watch), ["-10.5.3.0-24"]);
    manager.set_peers([lease(A, 2), lease(B, 3)]);
    assert_eq!(told(&mut watch), ["+10.5.3.0-24@192.168.64.3", "complete"]);
    manager.put_peer(lease(A, 9));
    assert_eq!(told(&mut watch), ["+10.5.2.0-24@192.168.64.9"]);
    manager.set_peers([lease(B, 3)]);
    assert_eq!(told(&mut watch), ["-10.5.2.0-24"], "they were told to be complete before");
    assert_eq!(
        told(&mut peers(&manager)),
        ["+10.5.3.0-24@192.168.64.3", "complete"],
        "so hears who comes late"
    );
}

#[test]
fn who_is_behind_hears_the_last_word_of_each_peer_only() {
    let manager = manager();
    let mut watch = peers(&manager);
    for last in 1..=200 {
        manager.set_peers([lease(A, last), lease(B, 3)]);
    }
    manager.remove_peer(&B.parse().unwrap());
    assert_eq!(told(&mut watch), ["+10.5.2.0-24@192.168.64.200 -10.5.3.0-24", "complete"]);
}

#[test]
fn a_host_is_no_peer_of_itself() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.set_peers([lease(OWN, 1), lease(A, 2)]);
    manager.put_peer(lease(OWN, 4));
    assert_eq!(told(&mut watch), ["+10.5.2.0-24@192.168.64.2", "complete"]);
}

#[test]
fn a_program_that_knows_nothing_any_more_removes_nobody() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.set_peers([lease(A, 2)]);
    told(&mut watch);
    manager.set_unavailable("the server does not answer");
    assert_eq!(told(&mut watch), ["the server does not answer"]);
    assert_eq!(told(&mut peers(&manager)).last().map(String::as_str), Some("the server does not answer"));
    manager.set_peers([lease(A, 2)]);
    assert_eq!(told(&mut watch), ["heard"]);
}

#[tokio::test]
async fn what_a_host_says_about_itself_is_told_to_the_program() {
    let manager = manager();
    let config = manager.config().await.unwrap();
    assert_eq!(manager.lease().now_or_never(), None);
    let mut changes = manager.lease_changes();
    let request = |attrs| LeaseRequest::new(&config, attrs);
    let own = manager.acquire(request(&attrs(1))).await.unwrap();
    assert_eq!((own.subnet.to_string().as_str(), own.attrs.clone()), (OWN, attrs(1)));
    assert_eq!(manager.lease().await, own);
    assert_eq!(changes.next().await.unwrap(), own);
    let moved = manager.publish(&own, &attrs(7)).await.unwrap();
    assert!(moved.revision > own.revision);
    assert_eq!(changes.next().await.unwrap(), moved);
    assert_eq!(manager.previous_lease(moved.attrs.public).await.unwrap(), Some(moved));
    drop(manager);
    assert_eq!(changes.next().await, None);
}

#[tokio::test]
async fn a_host_that_is_given_another_subnet_loses_its_own_and_gets_that_one() {
    let manager = manager();
    let config = manager.config().await.unwrap();
    let attrs = attrs(1);
    let request = LeaseRequest::new(&config, &attrs).with_previous(Some(OWN.parse().unwrap()));
    let own = manager.acquire(request).await.unwrap();
    let mut keep = manager.keep(own.clone());
    assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
    assert_eq!(keep.next().now_or_never(), None);
    manager.reassign(A.parse().unwrap()).unwrap();
    let lost = KeepEvent::Lost("the host was given 10.5.2.0-24".to_owned());
    assert_eq!(keep.next().now_or_never(), Some(Some(lost)));
    assert!(manager.publish(&own, &attrs).await.is_err(), "the old subnet is somebody else's now");
    assert_eq!(manager.acquire(request).await.unwrap().subnet.to_string(), A);
}

#[test]
fn a_subnet_outside_the_network_is_refused() {
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let new = |subnet: &str| StaticLeaseManager::new(config.clone(), subnet.parse().unwrap()).map(drop);
    assert!(new("10.5.1.64-26").is_ok(), "the program chooses the size");
    for subnet in ["10.6.1.0-24", "10.5.0.0-16", "10.4.0.0-15", "10.5.1.0-24&fc00::-64"] {
        let message = new(subnet).unwrap_err().to_string();
        let want = format!("a host cannot have {subnet}: it must have one subnet inside each of 10.5.0.0/16");
        assert_eq!(message, want);
    }
    let manager = manager();
    assert!(manager.reassign("10.6.1.0-24".parse().unwrap()).is_err());
}
