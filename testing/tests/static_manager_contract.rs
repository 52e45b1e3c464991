//! The static lease manager keeps the promises of every lease manager, apart from those that the program keeps that
//! assigns the subnets.

#![allow(clippy::unwrap_used, reason = "a test may fail in its helpers too")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{Lease, LeaseManager, NetworkConfig, StaticLeaseManager, SubnetKey};
use flannel_testing::contract::manager::LeaseManagerSubject;
use futures::StreamExt;

/// A program that assigns subnets and distributes the hosts' attributes.
#[derive(Clone, Default)]
struct Program(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The managers, each with its assigned subnet.
    hosts: BTreeMap<u8, (StaticLeaseManager, SubnetKey)>,
    leases: BTreeMap<SubnetKey, Lease>,
    /// The third byte of the last subnet that replaced a revoked one.
    next: u8,
}

impl State {
    fn set_peers(&self) {
        for (host, _) in self.hosts.values() {
            host.set_peers(self.leases.values().cloned());
        }
    }
}

fn subnet(third: u8) -> SubnetKey {
    format!("10.5.{third}.0-24").parse().unwrap()
}

impl Program {
    /// Distributes a host's attributes while the host has the subnet of its lease.
    fn follow(&self, host: u8, manager: &StaticLeaseManager) {
        let (program, mut said) = (self.clone(), manager.lease_changes());
        tokio::spawn(async move {
            while let Some(lease) = said.next().await {
                let mut state = program.0.lock().unwrap();
                let is_current = state.hosts[&host].1 == lease.subnet;
                if is_current {
                    state.leases.insert(lease.subnet, lease);
                }
                state.set_peers();
            }
        });
    }
}

#[async_trait]
impl LeaseManagerSubject for Program {
    async fn open(&self, host: u8, _: Duration) -> Arc<dyn LeaseManager> {
        let mut state = self.0.lock().unwrap();
        if let Some((manager, _)) = state.hosts.get(&host) {
            return Arc::new(manager.clone());
        }
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let manager = StaticLeaseManager::new(config, subnet(host)).unwrap();
        state.hosts.insert(host, (manager.clone(), subnet(host)));
        state.set_peers();
        drop(state);
        self.follow(host, &manager);
        Arc::new(manager)
    }

    async fn set_config(&self, _: &str) -> bool {
        false
    }

    async fn revoke_subnet(&self, taken: SubnetKey) {
        let state = &mut *self.0.lock().unwrap();
        state.leases.remove(&taken);
        if let Some((manager, given)) = state.hosts.values_mut().find(|(_, given)| *given == taken) {
            state.next += 1;
            *given = subnet(100 + state.next);
            manager.reassign(*given).unwrap();
        }
        state.set_peers();
    }

    async fn stop(&self) {
        self.0
            .lock()
            .unwrap()
            .hosts
            .values()
            .for_each(|(host, _)| host.set_unavailable("the program is restarting"));
    }

    async fn start(&self) {
        self.0.lock().unwrap().set_peers();
    }

    fn min_ttl(&self) -> Option<Duration> {
        None
    }

    fn assigned_subnet(&self, host: u8) -> Option<SubnetKey> {
        Some(self.0.lock().unwrap().hosts.get(&host).map_or(subnet(host), |(_, assigned)| *assigned))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

flannel_testing::lease_manager_contract!(
    #[tokio::test(start_paused = true)]
    Program::default(),
    skip: {
        chooses_subnet = "the program assigns subnets",
        corrupt_record = "the program passes leases, not records",
        min_ttl = "leases do not expire",
        reserve = "leases do not expire, so reservations are like others",
        set_config = "the program gives the config to the manager",
    }
);
