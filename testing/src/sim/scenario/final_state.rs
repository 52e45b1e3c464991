//! The checks of the final state.

use flannel_core::{LeaseAttrs, PublicAddrs, SubnetKey};

use super::Runner;
use crate::sim::GRACE;
use crate::sim::backend::{data, peer};
use crate::sim::host;
use crate::sim::kernel::Tables;

impl Runner<'_> {
    /// Checks every host in the end.
    pub(super) fn check_final_state(&mut self) {
        self.cluster.hosts.iter_mut().for_each(host::Host::observe);
        let checker = &self.cluster.checker;
        let leases = checker.leases();
        let mut held = 0;
        let mut expected = Tables::default();
        leases.iter().for_each(|(subnet, attrs)| expected.insert(*subnet, attrs));
        for host in self.cluster.hosts.iter().filter(|host| host.runs()) {
            let number = host.number;
            let own = host.holds.and_then(|subnet| Some((subnet, leases.get(&subnet)?)));
            let Some((own, attrs)) = own.filter(|_| host.ready) else {
                checker
                    .violation(format_args!("host {number} has no lease in the end, but {:?}", host.holds));
                continue;
            };
            held += 1;
            if attrs.public != PublicAddrs::from(host.public) {
                checker.violation(format_args!(
                    "host {number} holds {own}, whose lease belongs to {}",
                    attrs.public
                ));
            }
            let tables = host.kernel.tables();
            if attrs.backend_data != tables.device.and_then(data) {
                checker.violation(format_args!("the lease of host {number} does not match its device"));
            }
            expected.remove(own, attrs);
            if !tables.has_same_objects(&expected) {
                let extra = tables.routes.keys().find(|subnet| !expected.routes.contains_key(subnet));
                let missing = expected.routes.keys().find(|subnet| !tables.routes.contains_key(subnet));
                checker.violation(format_args!(
                    "the kernel of host {number} differs from the peers in the store: extra {extra:?}, missing {missing:?}"
                ));
            }
            drop(tables);
            expected.insert(own, attrs);
        }
        // The limit on the mean rate of a host's calls over the whole run.
        let allowed = self.begun.elapsed().as_secs() / 20;
        for host in self.cluster.hosts.iter().filter(|host| host.link.calls().all > allowed) {
            checker.violation(format_args!(
                "host {} made too many calls: {:?}",
                host.number,
                host.link.calls()
            ));
        }
        let difference = leases.len().abs_diff(held + self.upstream.len());
        if difference > 0 {
            checker.violation(format_args!("{difference} leases too many or too few in the end"));
        }
    }

    /// Checks some hosts while faults go on: a host that can reach the store has the objects of every peer that has
    /// been unchanged for a while.
    pub(super) fn spot_check(&mut self) {
        self.cluster.check_held_subnets();
        let peers = self.cluster.checker.unchanged_for(2 * GRACE);
        for _ in 0..SPOT_CHECKS {
            let number = self.cluster.random.usize(..self.cluster.hosts.len());
            let host = &self.cluster.hosts[number];
            let is_well = host.ready && !host.frozen && host.holds.is_some();
            let is_sound = host.link.healthy_since().map(|since| since.max(host.started));
            if !is_well || is_sound.is_none_or(|since| since.elapsed() <= 3 * GRACE) {
                continue;
            }
            let tables = host.kernel.tables();
            let missing = peers.iter().filter(|_| tables.are_reconciled()).find(|lease| {
                Some(lease.subnet) != host.holds
                    && peer(lease.subnet, &lease.attrs).is_some_and(|(subnet, mac, public)| {
                        tables.routes.get(&subnet) != Some(&subnet.addr())
                            || tables.neighbours.get(&subnet.addr()) != Some(&mac)
                            || tables.fdb.get(&mac) != Some(&public)
                    })
            });
            if let Some(missing) = missing {
                let subnet = missing.subnet;
                self.cluster
                    .checker
                    .violation(format_args!("host {number} does not have the objects of {subnet}"));
            }
        }
    }
}

/// The number of hosts that a spot check reads.
const SPOT_CHECKS: usize = 3;

/// The objects that the kernel should hold for a lease.
impl Tables {
    fn insert(&mut self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        if let Some((subnet, mac, public)) = peer(subnet, attrs) {
            self.routes.insert(subnet, subnet.addr());
            self.neighbours.insert(subnet.addr(), mac);
            self.fdb.insert(mac, public);
        }
    }

    fn remove(&mut self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        if let Some((subnet, mac, _)) = peer(subnet, attrs) {
            self.routes.remove(&subnet);
            self.neighbours.remove(&subnet.addr());
            self.fdb.remove(&mac);
        }
    }
}
