//! What must hold in the end.

use flannel_core::{LeaseAttrs, PublicAddrs, SubnetKey};

use super::Play;
use crate::sim::GRACE;
use crate::sim::backend::{data, peer};
use crate::sim::host;
use crate::sim::kernel::Tables;

impl Play<'_> {
    /// Looks at every host in the end.
    pub(super) fn judge(&mut self) {
        self.world.hosts.iter_mut().for_each(host::Host::observe);
        let witness = &self.world.witness;
        let leases = witness.leases();
        let mut held = 0;
        let mut should = Tables::default();
        leases.iter().for_each(|(subnet, attrs)| should.know(*subnet, attrs));
        for host in self.world.hosts.iter().filter(|host| host.runs()) {
            let number = host.number;
            let own = host.believes.and_then(|subnet| Some((subnet, leases.get(&subnet)?)));
            let Some((own, attrs)) = own.filter(|_| host.ready) else {
                witness.accuse(format_args!("host {number} has no lease in the end: {:?}", host.believes));
                continue;
            };
            held += 1;
            if attrs.public != PublicAddrs::from(host.public) {
                witness.accuse(format_args!("host {number} holds {own}, which is of {}", attrs.public));
            }
            let tables = host.kernel.tables();
            if attrs.backend_data != tables.device.and_then(data) {
                witness.accuse(format_args!("the lease of host {number} does not say what its device is"));
            }
            should.forget(own, attrs);
            if !tables.hold_the_same_as(&should) {
                let extra = tables.routes.keys().find(|subnet| !should.routes.contains_key(subnet));
                let lacks = should.routes.keys().find(|subnet| !tables.routes.contains_key(subnet));
                witness.accuse(format_args!(
                    "host {number} has not exactly the peers there are: too much is {extra:?}, too little {lacks:?}"
                ));
            }
            drop(tables);
            should.know(own, attrs);
        }
        // Whatever happens, no host asks its store more often than this over days.
        let allowed = self.begun.elapsed().as_secs() / 20;
        for host in self.world.hosts.iter().filter(|host| host.link.calls().all > allowed) {
            witness.accuse(format_args!("host {} made {:?} calls", host.number, host.link.calls()));
        }
        let strangers = leases.len().abs_diff(held + self.upstream.len());
        if strangers > 0 {
            witness.accuse(format_args!("{strangers} leases too many or too few in the end"));
        }
    }

    /// Looks at some hosts while faults go on: those that hear the store reach every peer that has been there for a
    /// while, at the address that it has now.
    pub(super) fn look_at_some(&mut self) {
        self.world.judge_beliefs();
        let peers = self.world.witness.unchanged_for(2 * GRACE);
        for _ in 0..LOOKED_AT {
            let number = self.world.random.usize(..self.world.hosts.len());
            let host = &self.world.hosts[number];
            let is_well = host.ready && !host.frozen && host.believes.is_some();
            let is_sound = host.link.sound_since().map(|since| since.max(host.started));
            if !is_well || is_sound.is_none_or(|since| since.elapsed() <= 3 * GRACE) {
                continue;
            }
            let tables = host.kernel.tables();
            let lacks = peers.iter().filter(|_| tables.are_kept()).find(|lease| {
                Some(lease.subnet) != host.believes
                    && peer(lease.subnet, &lease.attrs).is_some_and(|(subnet, mac, public)| {
                        tables.routes.get(&subnet) != Some(&subnet.addr())
                            || tables.neighbours.get(&subnet.addr()) != Some(&mac)
                            || tables.fdb.get(&mac) != Some(&public)
                    })
            });
            if let Some(lacks) = lacks {
                let subnet = lacks.subnet;
                self.world.witness.accuse(format_args!("host {number} does not reach {subnet} as it is"));
            }
        }
    }
}

/// How many hosts are looked at in each pause.
const LOOKED_AT: usize = 3;

/// What a kernel holds for some leases.
impl Tables {
    fn know(&mut self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        if let Some((subnet, mac, public)) = peer(subnet, attrs) {
            self.routes.insert(subnet, subnet.addr());
            self.neighbours.insert(subnet.addr(), mac);
            self.fdb.insert(mac, public);
        }
    }

    fn forget(&mut self, subnet: SubnetKey, attrs: &LeaseAttrs) {
        if let Some((subnet, mac, _)) = peer(subnet, attrs) {
            self.routes.remove(&subnet);
            self.neighbours.remove(&subnet.addr());
            self.fdb.remove(&mac);
        }
    }
}
