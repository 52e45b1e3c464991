//! What can happen to a cluster.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{BackendAttrs, BackendType, SubnetKey};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::{End, HOUR, MINUTE, Play};
use crate::sim::LARGE;
use crate::sim::backend::data;

/// How many hosts one act may befall.
const MOST_AT_ONCE: usize = 100;

impl Play<'_> {
    /// Does what the seed says.
    pub(super) fn act(&mut self) {
        let act = self.world.random.u32(..104);
        self.world.witness.note(format_args!("act {act}"));
        match act {
            0..=9 => self.each_of(0.05, Self::kill),
            10..=14 => self.each_of(0.02, Self::leave),
            15..=18 => self.each_of(0.02, Self::move_to_another_address),
            19..=22 => self.each_of(0.02, Self::start_anew),
            23..=25 => self.newcomer(),
            26..=33 => self.each_of(0.15, Self::partition),
            34..=40 => self.each_of(0.15, Self::stick),
            41..=46 => self.each_of(0.1, Self::freeze),
            47..=51 => self.each_of(0.3, |play, host| play.world.hosts[host].link.cut_watch()),
            52..=56 => self.each_of(0.2, Self::lossy),
            57..=60 => self.world.store.compact(),
            61..=63 => self.backup = Some(self.world.store.backup()),
            64..=66 => self.restore(),
            67..=69 => self.revoke(),
            70..=74 => self.garbage(),
            75..=79 => self.upstream_joins(),
            80..=83 => self.upstream_renews(),
            84..=86 => self.each_of(0.01, Self::overwrite),
            87..=89 => self.each_of(0.05, Self::rewrite),
            90..=95 => self.each_of(0.1, Self::drift),
            96..=99 => self.each_of(0.1, |play, host| play.world.hosts[host].kernel.tables().refuse(3)),
            _ => self.each_of(0.2, Self::start_on_a_bad_link),
        }
    }

    /// Does something to one live host at least, and at most to a share of them.
    fn each_of(&mut self, share: f64, act: impl Fn(&mut Self, usize)) {
        let live: Vec<usize> =
            self.world.hosts.iter().filter(|host| host.runs()).map(|host| host.number).collect();
        if live.is_empty() {
            return;
        }
        let most = ((live.len() as f64 * share) as usize).min(self.world.options.at_most(MOST_AT_ONCE));
        let mut chosen = BTreeSet::new();
        for _ in 0..=self.world.random.usize(..=most) {
            chosen.insert(live[self.world.random.usize(..live.len())]);
        }
        for host in chosen {
            self.world.witness.note(format_args!("to host {host}"));
            act(self, host);
        }
    }

    fn kill(&mut self, host: usize) {
        self.world.kill(host);
        let with_memory = self.world.random.bool();
        let forever = self.world.random.f64() < 0.1;
        let within = if self.world.random.bool() { MINUTE } else { HOUR * 36 };
        if !forever {
            self.later(within, End::Down { host, with_memory, anew: false });
        }
    }

    /// Leaves; sometimes somebody writes its record at the same moment.
    fn leave(&mut self, host: usize) {
        match self.world.random.u32(..4) {
            0 => self.write_for(host),
            1 => self.overwrite(host),
            _ => {}
        }
        self.world.leave(host);
        if self.world.random.bool() {
            self.later(HOUR * 4, End::Down { host, with_memory: false, anew: true });
        }
    }

    fn move_to_another_address(&mut self, host: usize) {
        self.world.kill(host);
        self.world.hosts[host].public = self.world.new_address();
        self.later(MINUTE, End::Down { host, with_memory: true, anew: true });
    }

    /// The machine comes back with an empty kernel, and its device with another address.
    fn start_anew(&mut self, host: usize) {
        self.world.kill(host);
        self.later(MINUTE, End::Down { host, with_memory: true, anew: true });
    }

    fn newcomer(&mut self) {
        for _ in 0..=self.world.random.usize(..5) {
            let host = self.world.add_host();
            self.world.start(host, false, false);
        }
    }

    fn partition(&mut self, host: usize) {
        self.world.hosts[host].link.partition(true);
        self.disturb_for(host, End::Partition(host));
    }

    fn stick(&mut self, host: usize) {
        let within = self.fault();
        self.stick_for(host, within);
    }

    fn stick_for(&mut self, host: usize, within: Duration) {
        self.world.hosts[host].link.stick(true);
        self.later(within, End::Stuck(host));
        self.world.hosts[host].link.deafen_watch(Instant::now() + within);
    }

    fn freeze(&mut self, host: usize) {
        self.world.freeze(host, true);
        self.disturb_for(host, End::Frozen(host));
    }

    fn start_on_a_bad_link(&mut self, host: usize) {
        self.lossy(host);
        self.world.kill(host);
        self.later(MINUTE, End::Down { host, with_memory: true, anew: false });
    }

    fn lossy(&mut self, host: usize) {
        let share = self.world.random.f64() * 0.5;
        self.world.hosts[host].link.lose(share);
        self.disturb_for(host, End::Loss(host));
    }

    /// Lets a fault of a host end some time, most soon, some later than its lease.
    fn disturb_for(&mut self, host: usize, end: End) {
        let within = self.fault();
        self.later(within, end);
        self.world.hosts[host].link.deafen(Instant::now() + within);
    }

    /// Draws how long a fault lasts at most.
    fn fault(&mut self) -> Duration {
        if self.world.random.f64() < 0.7 { MINUTE * 5 } else { HOUR * 40 }
    }

    fn restore(&mut self) {
        let Some(restore) = self.backup.take() else {
            return;
        };
        if self.world.random.bool() {
            // They go on in a store that may have grown as far as the one that they know.
            self.each_of(0.2, Self::freeze);
        }
        restore();
        self.world.note_restore();
        let leases = self.world.witness.leases();
        self.upstream.retain(|subnet, attrs| leases.get(subnet) == Some(attrs));
        self.world.disturb(None);
        for host in &self.world.hosts {
            host.link.deafen(Instant::now());
        }
    }

    fn revoke(&mut self) {
        let share = self.world.random.f64() * 0.6;
        let leases: Vec<SubnetKey> = self.world.witness.leases().into_keys().collect();
        // Each of them costs every host two events.
        let most = self.world.options.at_most(LARGE) as f64;
        let share = share * (most / most.max(leases.len() as f64));
        for subnet in leases {
            if self.world.random.f64() < share {
                self.world.store.remove_raw(&subnet.to_string());
                self.upstream.remove(&subnet);
            }
        }
        self.world.disturb(None);
    }

    fn garbage(&mut self) {
        let key = match self.world.random.u32(..3) {
            0 => format!("not-a-subnet-{}", self.world.random.u32(..10)),
            1 => self.any_subnet().to_string(),
            _ => self
                .world
                .hosts
                .first()
                .and_then(|host| host.believes)
                .unwrap_or(self.any_subnet())
                .to_string(),
        };
        self.world.store.put_raw(&key, r#"{"PublicIP":"not an address"}"#);
        if let Ok(subnet) = key.parse() {
            self.upstream.remove(&subnet);
            self.world.disturb(Some(subnet));
        }
        self.garbage.insert(key);
    }

    fn any_subnet(&mut self) -> SubnetKey {
        let number = self.world.random.u32(1..self.world.options.subnets());
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8));
        Ipv4Net::new_assert(address, 24).into()
    }

    /// A node of upstream's takes a subnet that looks free to it.
    fn upstream_joins(&mut self) {
        let subnet = self.any_subnet();
        if !self.world.witness.is_taken(subnet) {
            self.upstream_takes(subnet);
        }
    }

    /// A node of upstream's renews a lease that it has lost to this host long ago. Sometimes the watch of the host hears
    /// nothing of it, so that the next renewal is the first to find out.
    fn overwrite(&mut self, host: usize) {
        if self.world.random.bool() {
            self.stick_for(host, HOUR * 40);
        }
        if let Some(subnet) = self.world.hosts[host].believes {
            self.upstream_takes(subnet);
        }
    }

    fn upstream_takes(&mut self, subnet: SubnetKey) {
        self.upstream_nodes += 1;
        let [a, b, c, d] = self.upstream_nodes.to_be_bytes();
        let attrs = BackendAttrs::new(BackendType::VXLAN).with_data(data(Mac([0x0a, 0xff, a, b, c, d])));
        let attrs = attrs.at(Ipv4Addr::new(192, 168, c, d).into());
        self.world.store.put_raw(&subnet.to_string(), &attrs.to_record());
        self.upstream.insert(subnet, attrs);
        self.world.disturb(Some(subnet));
    }

    /// Renewing writes the same record again.
    fn upstream_renews(&mut self) {
        for (subnet, attrs) in &self.upstream {
            self.world.store.put_raw(&subnet.to_string(), &attrs.to_record());
        }
        let renewed: Vec<SubnetKey> = self.upstream.keys().copied().collect();
        renewed.into_iter().for_each(|subnet| self.world.disturb(Some(subnet)));
    }

    /// Another daemon of the same host writes its record, sometimes again and again while the host answers.
    fn rewrite(&mut self, host: usize) {
        self.write_for(host);
        for _ in 0..self.world.random.usize(..8) {
            self.later(Duration::from_secs(1), End::Rewritten(host));
        }
    }

    pub(super) fn write_for(&mut self, host: usize) {
        let public = self.world.hosts[host].public;
        let Some(subnet) = self.world.hosts[host].believes else {
            return;
        };
        let [_, b, c, d] = public.octets();
        let attrs = BackendAttrs::new(BackendType::VXLAN)
            .with_data(data(Mac([0x0a, 0xfe, self.world.random.u8(..), b, c, d])))
            .at(public.into());
        self.upstream.remove(&subnet);
        self.world.store.put_raw(&subnet.to_string(), &attrs.to_record());
        self.world.disturb(Some(subnet));
    }

    /// Somebody changes the kernel of a host, seen or unseen.
    fn drift(&mut self, host: usize) {
        let (some, seen) = (self.world.random.usize(..20), self.world.random.bool());
        let kernel = &self.world.hosts[host].kernel;
        {
            let mut tables = kernel.tables();
            let route = tables.routes.keys().nth(some).copied();
            let mac = tables.fdb.keys().nth(some / 2).copied();
            if let Some(route) = route {
                tables.routes.remove(&route);
                tables.neighbours.insert(route.addr(), Mac([2; 6]));
            }
            if let Some(mac) = mac {
                tables.fdb.insert(mac, Ipv4Addr::LOCALHOST);
            }
            tables.fdb.insert(Mac([4; 6]), Ipv4Addr::LOCALHOST);
            tables.drift();
        }
        if seen {
            kernel.notice();
        }
    }
}
