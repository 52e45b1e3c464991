//! What must hold in the end.

use std::collections::BTreeMap;

use flannel_core::PublicAddrs;

use super::Play;
use crate::sim::{backend, host};

impl Play<'_> {
    /// Looks at every host in the end.
    pub(super) fn judge(&mut self) {
        self.world.hosts.iter_mut().for_each(host::Host::observe);
        let witness = &self.world.witness;
        let leases = witness.leases();
        let mut held = 0;
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
            let peers = leases.iter().filter(|(subnet, _)| **subnet != own);
            let peers = peers.filter_map(|(subnet, attrs)| {
                Some((subnet.v4()?, backend::mac_of(attrs)?, attrs.public.v4?))
            });
            let (mut routes, mut neighbours, mut fdb) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            for (subnet, mac, public) in peers {
                routes.insert(subnet, subnet.addr());
                neighbours.insert(subnet.addr(), mac);
                fdb.insert(mac, public);
            }
            let tables = host.kernel.tables();
            if (&tables.routes, &tables.neighbours, &tables.fdb) != (&routes, &neighbours, &fdb) {
                let extra = tables.routes.keys().find(|subnet| !routes.contains_key(subnet));
                let lacks = routes.keys().find(|subnet| !tables.routes.contains_key(subnet));
                witness.accuse(format_args!(
                    "host {number} has not exactly the peers there are: too much is {extra:?}, too little {lacks:?}"
                ));
            }
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
}
