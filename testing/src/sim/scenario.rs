//! What happens to a cluster, drawn from the seed, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{BackendType, LeaseAttrs, PublicAddrs, SubnetKey};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;
use tokio::time::Instant;

use super::backend::data;
use super::witness::Found;
use super::world::World;
use super::{SimOptions, SimReport, SimStore};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// How many hosts one act may befall.
const MOST_AT_ONCE: usize = 100;

/// How long the faults go on.
const TROUBLE: Duration = Duration::from_secs(48 * 3600);
/// Longer than a lease lasts and an audit is away, so that nothing is left of the faults.
const RECOVERY: Duration = Duration::from_secs(30 * 3600);
const PEACE: Duration = Duration::from_secs(12 * 3600);

pub(super) async fn play(store: &dyn SimStore, options: SimOptions) -> SimReport {
    // Narrow, so that hosts meet.
    let subnets = (options.hosts * 2).next_power_of_two().max(256);
    let network_len = 24 - subnets.ilog2();
    store.set_config(&format!(
        r#"{{"Network":"10.0.0.0/{network_len}","SubnetLen":24,"Backend":{{"Type":"vxlan"}}}}"#
    ));
    let begun = Instant::now();
    let mut play = Play {
        world: World::new(store, options),
        ends: BTreeMap::new(),
        ended: 0,
        upstream: BTreeMap::new(),
        upstream_nodes: 0,
        garbage: BTreeSet::new(),
        backup: None,
        acts: 0,
        begun,
    };
    let calls_to_join = play.join().await;
    play.trouble().await;
    play.recover().await;
    play.peace().await;
    play.judge();
    let world = &play.world;
    SimReport {
        trace: world.witness.trace(),
        violations: world.witness.violations(),
        hosts: world.hosts.iter().filter(|host| host.runs()).count(),
        acts: play.acts,
        simulated: begun.elapsed(),
        calls_to_join,
        most_calls: world.hosts.iter().map(|host| host.link.calls().all).max().unwrap_or(0),
    }
}

struct Play<'a> {
    world: World<'a>,
    /// What ends, and when.
    ends: BTreeMap<(Instant, u64), End>,
    ended: u64,
    /// The records of nodes that do not compare.
    upstream: BTreeMap<SubnetKey, LeaseAttrs>,
    upstream_nodes: u32,
    garbage: BTreeSet<String>,
    backup: Option<Box<dyn FnOnce()>>,
    acts: usize,
    begun: Instant,
}

/// The end of something.
#[derive(Clone, Copy, Debug)]
enum End {
    Partition(usize),
    Stuck(usize),
    Loss(usize),
    Frozen(usize),
    /// Of the time a host is down; it remembers or not, and its kernel is empty or not.
    Down {
        host: usize,
        with_memory: bool,
        anew: bool,
    },
}

impl Play<'_> {
    /// Most hosts start at the same moment, the others within the hour.
    async fn join(&mut self) -> f64 {
        let hosts = self.world.options.hosts;
        for _ in 0..hosts {
            let host = self.world.add_host();
            if self.world.random.f64() < 0.6 {
                self.world.start(host, false, false);
            } else {
                self.later(HOUR, End::Down { host, with_memory: false, anew: false });
            }
        }
        self.run_for(HOUR + MINUTE).await;
        let calls: Vec<_> = self.world.hosts.iter().map(|host| host.link.calls()).collect();
        for (number, calls) in calls.iter().enumerate() {
            if calls.watches != 1 || calls.lists > 12 {
                self.world.witness.accuse(format_args!("host {number} joined with {calls:?}"));
            }
        }
        calls.iter().map(|calls| calls.all as f64).sum::<f64>() / hosts.max(1) as f64
    }

    async fn trouble(&mut self) {
        let acts = (60 + self.world.options.hosts / 4).min(400);
        let pause = TROUBLE / u32::try_from(acts).unwrap_or(u32::MAX);
        for _ in 0..acts {
            // Sometimes much happens at once.
            if self.world.random.f64() < 0.7 {
                let share = self.world.random.f64() * 2.0 / 0.7;
                self.run_for(pause.mul_f64(share)).await;
            }
            self.act();
            self.acts += 1;
        }
    }

    /// Ends all faults, and lets time pass until nothing is left of them.
    async fn recover(&mut self) {
        let ends: Vec<End> = std::mem::take(&mut self.ends).into_values().collect();
        ends.into_iter().for_each(|end| self.end(end));
        for number in 0..self.world.hosts.len() {
            self.world.freeze(number, false);
            let host = &self.world.hosts[number];
            host.link.heal();
            host.link.deafen(Instant::now());
            host.kernel.tables().refusals = 0;
        }
        self.world.witness.note(format_args!("the faults end"));
        self.run_for(MINUTE * 10).await;
        self.tidy();
        self.run_for(RECOVERY).await;
    }

    /// Removes the records that an operator would have to remove: garbage, and reservations of hosts that are gone.
    fn tidy(&mut self) {
        for key in std::mem::take(&mut self.garbage) {
            // Somebody may have written something better there meanwhile.
            let is_lease =
                key.parse().is_ok_and(|subnet| matches!(self.world.witness.found(subnet), Found::Lease(_)));
            if !is_lease {
                self.world.store.remove_raw(&key);
            }
        }
        self.world.disturb(None);
        for (subnet, attrs) in self.world.witness.leases() {
            let is_held = self.world.hosts.iter().any(|host| host.believes == Some(subnet));
            if !is_held && self.upstream.get(&subnet) != Some(&attrs) {
                self.world.store.remove_raw(&subnet.to_string());
            }
        }
        self.world.disturb(None);
    }

    async fn peace(&mut self) {
        let before: Vec<_> = self.world.hosts.iter().map(|host| host.link.calls()).collect();
        self.run_for(PEACE).await;
        // A renewal comes at a third of a day or up to a tenth before.
        let renewals = (PEACE.as_secs_f64() / (8.0 * 3600.0 * 0.9)).ceil() as u64;
        for (host, before) in self.world.hosts.iter().zip(before) {
            let calls = host.link.calls();
            let others = calls.lists - before.lists + calls.watches - before.watches;
            if calls.all - before.all > renewals || others > 0 {
                let number = host.number;
                self.world
                    .witness
                    .accuse(format_args!("host {number} made calls in peace: {before:?} {calls:?}"));
            }
        }
    }

    /// Looks at every host in the end.
    fn judge(&mut self) {
        self.world.hosts.iter_mut().for_each(super::host::Host::observe);
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
                Some((subnet.v4()?, super::backend::mac_of(attrs)?, attrs.public.v4?))
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

    fn later(&mut self, within: Duration, end: End) {
        let share = self.world.random.f64();
        let at = Instant::now() + within.mul_f64(share);
        self.ended += 1;
        self.ends.insert((at, self.ended), end);
    }

    async fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(entry) = self.ends.first_entry().filter(|entry| entry.key().0 <= until) {
            let at = entry.key().0;
            let end = entry.remove();
            self.world.run_until(at).await;
            self.end(end);
        }
        self.world.run_until(until).await;
    }

    fn end(&mut self, end: End) {
        self.world.witness.note(format_args!("end of {end:?}"));
        let link = |host: usize| &self.world.hosts[host].link;
        match end {
            End::Partition(host) => link(host).partition(false),
            End::Stuck(host) => link(host).stick(false),
            End::Loss(host) => link(host).lose(0.0),
            End::Frozen(host) => self.world.freeze(host, false),
            End::Down { host, with_memory, anew } => {
                if !self.world.hosts[host].runs() {
                    self.world.kill(host);
                    self.world.start(host, with_memory, anew);
                }
            }
        }
        let (End::Partition(host)
        | End::Stuck(host)
        | End::Loss(host)
        | End::Frozen(host)
        | End::Down { host, .. }) = end;
        self.world.hosts[host].link.deafen(Instant::now());
    }

    fn act(&mut self) {
        let act = self.world.random.u32(..100);
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
            87..=89 => self.each_of(0.02, Self::rewrite),
            90..=95 => self.each_of(0.1, Self::drift),
            _ => self.each_of(0.1, |play, host| play.world.hosts[host].kernel.tables().refusals = 3),
        }
    }

    /// Does something to one live host at least, and at most to a share of them.
    fn each_of(&mut self, share: f64, act: impl Fn(&mut Self, usize)) {
        let live: Vec<usize> =
            self.world.hosts.iter().filter(|host| host.runs()).map(|host| host.number).collect();
        if live.is_empty() {
            return;
        }
        // Each host that connects again costs a list of all others, so in large clusters it is a smaller share.
        let most = ((live.len() as f64 * share) as usize).min(MOST_AT_ONCE);
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

    fn leave(&mut self, host: usize) {
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
        self.world.hosts[host].link.stick(true);
        self.disturb_for(host, End::Stuck(host));
    }

    fn freeze(&mut self, host: usize) {
        self.world.freeze(host, true);
        self.disturb_for(host, End::Frozen(host));
    }

    fn lossy(&mut self, host: usize) {
        let share = self.world.random.f64() * 0.5;
        self.world.hosts[host].link.lose(share);
        self.disturb_for(host, End::Loss(host));
    }

    /// Lets a fault of a host end some time, most soon, some later than its lease.
    fn disturb_for(&mut self, host: usize, end: End) {
        let within = if self.world.random.f64() < 0.7 { MINUTE * 5 } else { HOUR * 40 };
        self.later(within, end);
        self.world.hosts[host].link.deafen(Instant::now() + within);
    }

    fn restore(&mut self) {
        let Some(restore) = self.backup.take() else {
            return;
        };
        restore();
        self.world.hosts.iter().for_each(|host| host.link.note_restore());
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
        let share = share * (1000.0 / leases.len().max(1000) as f64);
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
        let subnets = u32::try_from((self.world.options.hosts * 2).max(250)).unwrap_or(250);
        let number = self.world.random.u32(1..subnets);
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

    /// A node of upstream's renews a lease that it has lost to this host long ago.
    fn overwrite(&mut self, host: usize) {
        if let Some(subnet) = self.world.hosts[host].believes {
            self.upstream_takes(subnet);
        }
    }

    fn upstream_takes(&mut self, subnet: SubnetKey) {
        self.upstream_nodes += 1;
        let [a, b, c, d] = self.upstream_nodes.to_be_bytes();
        let attrs = LeaseAttrs {
            backend_type: BackendType::VXLAN,
            backend_data: data(Mac([0x0a, 0xff, a, b, c, d])),
            ..LeaseAttrs::new(Ipv4Addr::new(192, 168, c, d).into())
        };
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

    /// Another daemon of the same host writes its record.
    fn rewrite(&mut self, host: usize) {
        let public = self.world.hosts[host].public;
        let Some(subnet) = self.world.hosts[host].believes else {
            return;
        };
        let [a, b, c, d] = public.octets();
        let attrs = LeaseAttrs {
            backend_type: BackendType::VXLAN,
            backend_data: data(Mac([0x0a, 0xfe, a, b, c, d])),
            ..LeaseAttrs::new(public.into())
        };
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
        }
        if seen {
            kernel.notice();
        }
    }
}
