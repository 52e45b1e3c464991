//! The faults and other actions of a scenario.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{BackendAttrs, BackendType, SubnetKey};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::{FaultEnd, HOUR, MINUTE, Runner};
use crate::sim::LARGE;
use crate::sim::backend::data;

/// The most hosts that one action affects.
const MAX_HOSTS_PER_ACTION: usize = 100;

impl Runner<'_> {
    /// Takes the next action that the seed determines.
    pub(super) fn inject(&mut self) {
        let action = self.cluster.random.u32(..104);
        self.cluster.checker.record(format_args!("action {action}"));
        match action {
            0..=9 => self.each_of(0.05, Self::kill),
            10..=14 => self.each_of(0.02, Self::leave),
            15..=18 => self.each_of(0.02, Self::change_address),
            19..=22 => self.each_of(0.02, Self::reboot),
            23..=25 => self.add_hosts(),
            26..=33 => self.each_of(0.15, Self::partition),
            34..=40 => self.each_of(0.15, Self::stall_watch),
            41..=46 => self.each_of(0.1, Self::freeze),
            47..=51 => self.each_of(0.3, |runner, host| runner.cluster.hosts[host].link.cut_watch()),
            52..=56 => self.each_of(0.2, Self::lose_messages),
            57..=60 => self.cluster.store.compact(),
            61..=63 => self.backup = Some(self.cluster.store.backup()),
            64..=66 => self.restore(),
            67..=69 => self.revoke(),
            70..=74 => self.garbage(),
            75..=79 => self.upstream_node_joins(),
            80..=83 => self.upstream_nodes_renew(),
            84..=86 => self.each_of(0.01, Self::overwrite),
            87..=89 => self.each_of(0.05, Self::rewrite),
            90..=95 => self.each_of(0.1, Self::drift),
            96..=99 => self.each_of(0.1, |runner, host| runner.cluster.hosts[host].kernel.tables().refuse(3)),
            _ => self.each_of(0.2, Self::restart_on_lossy_link),
        }
    }

    /// Applies an action to at least one running host and at most this share of them.
    fn each_of(&mut self, share: f64, action: impl Fn(&mut Self, usize)) {
        let live: Vec<usize> =
            self.cluster.hosts.iter().filter(|host| host.runs()).map(|host| host.number).collect();
        if live.is_empty() {
            return;
        }
        let max =
            ((live.len() as f64 * share) as usize).min(self.cluster.options.at_most(MAX_HOSTS_PER_ACTION));
        let mut chosen = BTreeSet::new();
        for _ in 0..=self.cluster.random.usize(..=max) {
            chosen.insert(live[self.cluster.random.usize(..live.len())]);
        }
        for host in chosen {
            self.cluster.checker.record(format_args!("to host {host}"));
            action(self, host);
        }
    }

    fn kill(&mut self, host: usize) {
        self.cluster.kill(host);
        let with_previous = self.cluster.random.bool();
        let forever = self.cluster.random.f64() < 0.1;
        let within = if self.cluster.random.bool() { MINUTE } else { HOUR * 36 };
        if !forever {
            self.end_within(within, FaultEnd::Down { host, with_previous, rebooted: false });
        }
    }

    /// Makes a host leave; sometimes another node writes its record at the same moment.
    fn leave(&mut self, host: usize) {
        match self.cluster.random.u32(..4) {
            0 => self.write_for(host),
            1 => self.overwrite(host),
            _ => {}
        }
        self.cluster.leave(host);
        if self.cluster.random.bool() {
            self.end_within(HOUR * 4, FaultEnd::Down { host, with_previous: false, rebooted: true });
        }
    }

    fn change_address(&mut self, host: usize) {
        self.cluster.kill(host);
        self.cluster.hosts[host].public = self.cluster.new_address();
        self.end_within(MINUTE, FaultEnd::Down { host, with_previous: true, rebooted: true });
    }

    /// Reboots the machine: its kernel is empty and its device has another MAC address.
    fn reboot(&mut self, host: usize) {
        self.cluster.kill(host);
        self.end_within(MINUTE, FaultEnd::Down { host, with_previous: true, rebooted: true });
    }

    fn add_hosts(&mut self) {
        for _ in 0..=self.cluster.random.usize(..5) {
            let host = self.cluster.add_host();
            self.cluster.start(host, false, false);
        }
    }

    fn partition(&mut self, host: usize) {
        self.cluster.hosts[host].link.partition(true);
        self.schedule_end(host, FaultEnd::Partition(host));
    }

    fn stall_watch(&mut self, host: usize) {
        let within = self.fault_duration();
        self.stall_watch_for(host, within);
    }

    fn stall_watch_for(&mut self, host: usize, within: Duration) {
        self.cluster.hosts[host].link.stall_watch(true);
        self.end_within(within, FaultEnd::WatchStalled(host));
        self.cluster.hosts[host].link.mark_watch_stalled(Instant::now() + within);
    }

    fn freeze(&mut self, host: usize) {
        self.cluster.freeze(host, true);
        self.schedule_end(host, FaultEnd::Frozen(host));
    }

    fn restart_on_lossy_link(&mut self, host: usize) {
        self.lose_messages(host);
        self.cluster.kill(host);
        self.end_within(MINUTE, FaultEnd::Down { host, with_previous: true, rebooted: false });
    }

    fn lose_messages(&mut self, host: usize) {
        let share = self.cluster.random.f64() * 0.5;
        self.cluster.hosts[host].link.set_loss(share);
        self.schedule_end(host, FaultEnd::Loss(host));
    }

    /// Schedules the end of a host's fault: most are short, some outlast the lease.
    fn schedule_end(&mut self, host: usize, end: FaultEnd) {
        let within = self.fault_duration();
        self.end_within(within, end);
        self.cluster.hosts[host].link.mark_stalled(Instant::now() + within);
    }

    /// Returns the longest duration of a fault.
    fn fault_duration(&mut self) -> Duration {
        if self.cluster.random.f64() < 0.7 { MINUTE * 5 } else { HOUR * 40 }
    }

    fn restore(&mut self) {
        let Some(restore) = self.backup.take() else {
            return;
        };
        if self.cluster.random.bool() {
            // They resume against a store whose revision may have reached theirs again.
            self.each_of(0.2, Self::freeze);
        }
        restore();
        self.cluster.note_restore();
        let leases = self.cluster.checker.leases();
        self.upstream.retain(|subnet, attrs| leases.get(subnet) == Some(attrs));
        self.cluster.note_external_write(None);
        for host in &self.cluster.hosts {
            host.link.mark_stalled(Instant::now());
        }
    }

    fn revoke(&mut self) {
        let share = self.cluster.random.f64() * 0.6;
        let leases: Vec<SubnetKey> = self.cluster.checker.leases().into_keys().collect();
        // Each removed lease costs every host two events.
        let max = self.cluster.options.at_most(LARGE) as f64;
        let share = share * (max / max.max(leases.len() as f64));
        for subnet in leases {
            if self.cluster.random.f64() < share {
                self.cluster.store.remove_raw(&subnet.to_string());
                self.upstream.remove(&subnet);
            }
        }
        self.cluster.note_external_write(None);
    }

    fn garbage(&mut self) {
        let key = match self.cluster.random.u32(..3) {
            0 => format!("not-a-subnet-{}", self.cluster.random.u32(..10)),
            1 => self.any_subnet().to_string(),
            _ => self
                .cluster
                .hosts
                .first()
                .and_then(|host| host.holds)
                .unwrap_or(self.any_subnet())
                .to_string(),
        };
        self.cluster.store.put_raw(&key, r#"{"PublicIP":"not an address"}"#);
        if let Ok(subnet) = key.parse() {
            self.upstream.remove(&subnet);
            self.cluster.note_external_write(Some(subnet));
        }
        self.garbage.insert(key);
    }

    fn any_subnet(&mut self) -> SubnetKey {
        let number = self.cluster.random.u32(1..self.cluster.options.subnets());
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8));
        Ipv4Net::new_assert(address, 24).into()
    }

    /// A node that runs upstream flannel leases a subnet that it saw as free.
    fn upstream_node_joins(&mut self) {
        let subnet = self.any_subnet();
        if !self.cluster.checker.is_taken(subnet) {
            self.upstream_node_writes(subnet);
        }
    }

    /// A node that runs upstream flannel renews a lease that this host has taken over since. Sometimes the host's watch
    /// is stalled, so that its next renewal notices first.
    fn overwrite(&mut self, host: usize) {
        if self.cluster.random.bool() {
            self.stall_watch_for(host, HOUR * 40);
        }
        if let Some(subnet) = self.cluster.hosts[host].holds {
            self.upstream_node_writes(subnet);
        }
    }

    fn upstream_node_writes(&mut self, subnet: SubnetKey) {
        self.upstream_nodes += 1;
        let [a, b, c, d] = self.upstream_nodes.to_be_bytes();
        let attrs = BackendAttrs::new(BackendType::VXLAN).with_data(data(Mac([0x0a, 0xff, a, b, c, d])));
        let attrs = attrs.at(Ipv4Addr::new(192, 168, c, d).into());
        self.cluster.store.put_raw(&subnet.to_string(), &attrs.to_record());
        self.upstream.insert(subnet, attrs);
        self.cluster.note_external_write(Some(subnet));
    }

    /// Renews the leases of upstream nodes, which rewrites the same records.
    fn upstream_nodes_renew(&mut self) {
        for (subnet, attrs) in &self.upstream {
            self.cluster.store.put_raw(&subnet.to_string(), &attrs.to_record());
        }
        let renewed: Vec<SubnetKey> = self.upstream.keys().copied().collect();
        renewed.into_iter().for_each(|subnet| self.cluster.note_external_write(Some(subnet)));
    }

    /// A second daemon of the same host writes its record, sometimes repeatedly while the host restores it.
    fn rewrite(&mut self, host: usize) {
        self.write_for(host);
        for _ in 0..self.cluster.random.usize(..8) {
            self.end_within(Duration::from_secs(1), FaultEnd::Rewritten(host));
        }
    }

    pub(super) fn write_for(&mut self, host: usize) {
        let public = self.cluster.hosts[host].public;
        let Some(subnet) = self.cluster.hosts[host].holds else {
            return;
        };
        let [_, b, c, d] = public.octets();
        let attrs = BackendAttrs::new(BackendType::VXLAN)
            .with_data(data(Mac([0x0a, 0xfe, self.cluster.random.u8(..), b, c, d])))
            .at(public.into());
        self.upstream.remove(&subnet);
        self.cluster.store.put_raw(&subnet.to_string(), &attrs.to_record());
        self.cluster.note_external_write(Some(subnet));
    }

    /// Changes the kernel of a host, with or without a notification.
    fn drift(&mut self, host: usize) {
        let (nth, notified) = (self.cluster.random.usize(..20), self.cluster.random.bool());
        let kernel = &self.cluster.hosts[host].kernel;
        {
            let mut tables = kernel.tables();
            let route = tables.routes.keys().nth(nth).copied();
            let mac = tables.fdb.keys().nth(nth / 2).copied();
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
        if notified {
            kernel.notice();
        }
    }
}
