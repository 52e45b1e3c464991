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

/// Returns the events that a watch yields without waiting, in short.
fn drain(watch: &mut BoxStream<'static, PeerEvent>) -> Vec<String> {
    let mut drained = Vec::new();
    while let Some(Some(event)) = watch.next().now_or_never() {
        drained.push(match event {
            PeerEvent::Changed(changes) => {
                let changes = changes.iter().map(|change| match change {
                    LeaseChange::Put(lease) => format!("+{}@{}", lease.subnet, lease.attrs.public),
                    LeaseChange::Removed(subnet) => format!("-{subnet}"),
                    LeaseChange::Released(subnet) => format!("!{subnet}"),
                });
                changes.collect::<Vec<_>>().join(" ")
            }
            PeerEvent::Complete => "complete".to_owned(),
            PeerEvent::RegistryUnavailable(reason) => reason,
            PeerEvent::RegistryAvailable => "available".to_owned(),
            PeerEvent::FromCache(reason) => format!("cached: {reason}"),
            PeerEvent::Bad(bad) => format!("{} bad", bad.len()),
            PeerEvent::CacheRejected(_) => "?".to_owned(),
        });
    }
    drained
}

#[test]
fn peers_are_complete_after_the_first_list() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.put_peer(lease(A, 2));
    assert_eq!(drain(&mut watch), ["+10.5.2.0-24@192.168.64.2"]);
    manager.remove_peer(&B.parse().unwrap());
    assert_eq!(drain(&mut watch), ["!10.5.3.0-24"]);
    manager.set_peers([lease(A, 2), lease(B, 3)]);
    assert_eq!(drain(&mut watch), ["+10.5.3.0-24@192.168.64.3", "complete"]);
    manager.put_peer(lease(A, 9));
    assert_eq!(drain(&mut watch), ["+10.5.2.0-24@192.168.64.9"]);
    manager.set_peers([lease(B, 3)]);
    assert_eq!(drain(&mut watch), ["-10.5.2.0-24"], "they were complete before");
    assert_eq!(
        drain(&mut peers(&manager)),
        ["+10.5.3.0-24@192.168.64.3", "complete"],
        "a late watch gets the same state"
    );
}

#[test]
fn a_slow_watch_gets_only_the_last_change_of_each_peer() {
    let manager = manager();
    let mut watch = peers(&manager);
    for last in 1..=200 {
        manager.set_peers([lease(A, last), lease(B, 3)]);
    }
    manager.remove_peer(&B.parse().unwrap());
    assert_eq!(drain(&mut watch), ["+10.5.2.0-24@192.168.64.200 !10.5.3.0-24", "complete"]);
}

#[test]
fn a_host_is_not_its_own_peer() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.set_peers([lease(OWN, 1), lease(A, 2)]);
    manager.put_peer(lease(OWN, 4));
    assert_eq!(drain(&mut watch), ["+10.5.2.0-24@192.168.64.2", "complete"]);
}

#[test]
fn an_unavailable_control_plane_removes_no_peer() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.set_peers([lease(A, 2)]);
    drain(&mut watch);
    manager.set_unavailable("the server does not answer");
    assert_eq!(drain(&mut watch), ["the server does not answer"]);
    assert_eq!(drain(&mut peers(&manager)).last().map(String::as_str), Some("the server does not answer"));
    manager.set_peers([lease(A, 2)]);
    assert_eq!(drain(&mut watch), ["available"]);
}

#[tokio::test]
async fn the_program_follows_the_lease_until_it_is_released() {
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
    manager.release(&own).await.unwrap();
    assert_eq!(changes.next().await, None);
    let mut changes = manager.lease_changes();
    assert_eq!(changes.next().now_or_never(), None, "no lease yet");
    drop(manager);
    assert_eq!(changes.next().await, None);
}

#[tokio::test]
async fn a_reassigned_host_loses_its_lease_and_acquires_the_new_subnet() {
    let manager = manager();
    let config = manager.config().await.unwrap();
    let attrs = attrs(1);
    let request = LeaseRequest::new(&config, &attrs).with_previous(Some(OWN.parse().unwrap()));
    let own = manager.acquire(request).await.unwrap();
    let mut keep = manager.keep(own.clone());
    assert_eq!(keep.next().await, Some(KeepEvent::Permanent));
    assert_eq!(keep.next().now_or_never(), None);
    manager.reassign(A.parse().unwrap()).unwrap();
    let lost = KeepEvent::Lost("the host was assigned 10.5.2.0-24".to_owned());
    assert_eq!(keep.next().now_or_never(), Some(Some(lost)));
    assert!(manager.publish(&own, &attrs).await.is_err(), "the old subnet may belong to another host");
    assert_eq!(manager.acquire(request).await.unwrap().subnet.to_string(), A);
}

#[test]
fn a_subnet_outside_the_network_is_refused() {
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let new = |subnet: &str| StaticLeaseManager::new(config.clone(), subnet.parse().unwrap()).map(drop);
    assert!(new("10.5.1.64-26").is_ok(), "the program chooses the length");
    for subnet in ["10.6.1.0-24", "10.5.0.0-16", "10.4.0.0-15", "10.5.1.0-24&fc00::-64"] {
        let message = new(subnet).unwrap_err().to_string();
        let want = format!("a host cannot have {subnet}: it must have one subnet inside each of 10.5.0.0/16");
        assert_eq!(message, want);
    }
    let manager = manager();
    assert!(manager.reassign("10.6.1.0-24".parse().unwrap()).is_err());
}

#[test]
fn cached_peers_are_marked_and_ignored_once_the_peers_are_complete() {
    let manager = manager();
    let mut watch = peers(&manager);
    manager.set_cached_peers([lease(A, 2)], "away");
    assert_eq!(drain(&mut watch), ["+10.5.2.0-24@192.168.64.2", "cached: away"]);
    assert_eq!(drain(&mut peers(&manager)), ["+10.5.2.0-24@192.168.64.2", "cached: away"]);
    manager.set_peers([lease(B, 3)]);
    assert_eq!(drain(&mut watch), ["-10.5.2.0-24 +10.5.3.0-24@192.168.64.3", "complete"]);
    manager.set_cached_peers([lease(A, 2)], "away");
    assert_eq!(drain(&mut watch), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_manager_reports_its_name_its_last_contact_and_bad_records() {
    let manager = manager().with_name("fleet controller");
    assert_eq!((manager.describe().as_str(), manager.last_contact()), ("fleet controller", None));
    let mut watch = peers(&manager);
    manager.set_bad_records(vec![BadRecord::new("node-7", None, "not JSON")]);
    assert_eq!(drain(&mut watch), ["1 bad"]);
    assert_eq!(drain(&mut peers(&manager)), ["1 bad"]);
    let contact = manager.last_contact().unwrap();
    tokio::time::advance(std::time::Duration::from_secs(7)).await;
    manager.set_peers([lease(A, 2)]);
    assert_eq!(manager.last_contact().unwrap().at - contact.at, std::time::Duration::from_secs(7));
}
