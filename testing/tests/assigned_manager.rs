//! A lease manager whose subnets are assigned from outside, as a Kubernetes node's are, keeps the promises of every lease
//! manager and drives a network.
//!
//! Hosts are known by name. A subnet may lie outside the network and have another length than `SubnetLen`, an operator may
//! override the address that peers use, and a host without a subnet waits for one.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod assigned;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    ExternalInterface, LeaseAttrs, LeaseManager, Network, NetworkConfig, NetworkOptions, PublicAddrs,
    SubnetKey,
};
use flannel_testing::FakeBackend;
use flannel_testing::contract::manager::LeaseManagerSubject;

use assigned::{AssignedManager, Cluster};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

/// Returns a subnet outside [`CONFIG`]'s network, with another length than its subnets.
fn outside(n: u8) -> SubnetKey {
    format!("10.244.{n}.0-25").parse().unwrap()
}

fn name_of(host: u8) -> String {
    format!("worker-{host}")
}

/// The address at which peers reach a host, as an operator wrote it.
fn override_of(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, host)
}

/// A cluster whose managers are opened behind a pointer.
struct Subject {
    cluster: Cluster,
    point: fn(AssignedManager) -> Arc<dyn LeaseManager>,
}

impl Subject {
    fn new(point: fn(AssignedManager) -> Arc<dyn LeaseManager>) -> Self {
        Self { cluster: Cluster::new(NetworkConfig::parse(CONFIG).unwrap()), point }
    }
}

#[async_trait]
impl LeaseManagerSubject for Subject {
    async fn open(&self, host: u8, _: Duration) -> Arc<dyn LeaseManager> {
        let name = name_of(host);
        self.cluster.add_node(&name);
        if self.cluster.subnet_of(&name).is_none() {
            self.cluster.assign(&name, outside(host));
        }
        self.cluster.override_address(&name, override_of(host));
        (self.point)(self.cluster.manager(&name))
    }

    async fn set_config(&self, _: &str) -> bool {
        false
    }

    async fn revoke_subnet(&self, subnet: SubnetKey) {
        self.cluster.reassign(subnet);
    }

    async fn stop(&self) {
        self.cluster.set_reachable(false);
    }

    async fn start(&self) {
        self.cluster.set_reachable(true);
    }

    fn min_ttl(&self) -> Option<Duration> {
        None
    }

    fn assigned_subnet(&self, host: u8) -> Option<SubnetKey> {
        Some(self.cluster.subnet_of(&name_of(host)).unwrap_or(outside(host)))
    }

    fn published(&self, host: u8, mut attrs: LeaseAttrs) -> LeaseAttrs {
        attrs.public = override_of(host).into();
        attrs
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

mod boxed {
    use super::*;

    /// A manager behind `Box<dyn LeaseManager>`.
    fn subject() -> Subject {
        Subject::new(|manager| Arc::new(Box::new(manager) as Box<dyn LeaseManager>))
    }

    flannel_testing::lease_manager_contract!(
        #[tokio::test(start_paused = true)]
        subject(),
        skip: {
            chooses_subnet = "the cluster assigns subnets",
            corrupt_record = "a node has typed fields, not records",
            min_ttl = "assignments do not expire",
            reserve = "assignments do not expire, so reservations are like others",
            set_config = "the cluster's config is fixed",
        }
    );
}

mod shared {
    use super::*;

    /// A manager behind `Arc<Arc<dyn LeaseManager>>`.
    fn subject() -> Subject {
        Subject::new(|manager| Arc::new(Arc::new(manager) as Arc<dyn LeaseManager>))
    }

    flannel_testing::lease_manager_contract!(
        #[tokio::test(start_paused = true)]
        subject(),
        skip: {
            chooses_subnet = "the cluster assigns subnets",
            corrupt_record = "a node has typed fields, not records",
            min_ttl = "assignments do not expire",
            reserve = "assignments do not expire, so reservations are like others",
            set_config = "the cluster's config is fixed",
        }
    );
}

#[tokio::test(start_paused = true)]
async fn a_network_waits_for_its_subnet_and_reports_that_it_is_ready() {
    let cluster = Cluster::new(NetworkConfig::parse(CONFIG).unwrap());
    for name in ["worker-1", "worker-2"] {
        cluster.add_node(name);
    }
    cluster.override_address("worker-1", override_of(1));
    cluster.assign("worker-2", outside(2));
    cluster.publish("worker-2", LeaseAttrs::new(Ipv4Addr::new(192, 168, 64, 2).into()));

    let manager: Box<dyn LeaseManager> = Box::new(cluster.manager("worker-1"));
    let host = FakeBackend::new();
    let external = ExternalInterface::new("eth0", 2, 1500, Ipv4Addr::new(192, 168, 64, 1));
    let (network, task) = Network::new(NetworkOptions::new(manager, host.clone(), external));
    let task = tokio::spawn(task.run());

    tokio::time::sleep(Duration::from_secs(600)).await;
    let status = network.status();
    assert!(!status.ready && status.lease.is_none(), "the network must wait for a subnet, got {status:?}");
    let errors = format!("{status:?}");
    assert!(errors.contains("no subnet for this host in node worker-1 yet"), "{errors}");
    assert!(!cluster.is_ready("worker-1"), "the manager must not report a waiting host as ready");

    cluster.assign("worker-1", outside(1));
    tokio::time::timeout(Duration::from_secs(120), network.ready()).await.unwrap().unwrap();
    let lease = network.lease().unwrap();
    assert_eq!(lease.subnet, outside(1), "the lease must have the assigned subnet");
    assert_eq!(
        lease.attrs.public,
        PublicAddrs::from(override_of(1)),
        "the lease must have the overridden address"
    );
    while network.summary().peers.programmed < 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(host.peers().contains_key(&outside(2)), "a peer outside the network must be programmed");
    assert!(cluster.is_ready("worker-1"), "the manager must report the host as ready");
    let status = network.status();
    let (own, peers) = (status.lease.unwrap(), status.peers.each.unwrap());
    assert_eq!(own.name.as_deref(), Some("worker-1"), "the status must contain the host's name");
    assert_eq!(peers[0].name.as_deref(), Some("worker-2"), "the status must contain the peer's name");
    drop((network, task));
}
