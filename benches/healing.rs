//! Measures how long the backend takes to repair drift.
//!
//! Three hosts run the backend, each network on a thread with a runtime of its own, as in the daemon. The bench damages
//! the first host in several ways, ten times each, while a pod on it pings a pod on the second host every millisecond.
//! `kernel` is the time from the system call that does the damage until the kernel holds the same objects as before;
//! `silence` is the longest time between two answers to the ping around it, so a few milliseconds mean that nothing was
//! lost. Where the external interface was taken down, both count from when it is up again. No audit runs meanwhile:
//! notifications of the kernel cause the repair.
//!
//! ```text
//! cargo bench -p flannel-benches --bench healing            # ten times each
//! cargo bench -p flannel-benches --bench healing -- 30      # more
//! cargo bench -p flannel-benches --bench healing -- --quick # three times each
//! ```
//!
//! Needs root.

#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_backend_host_gw::OpenHostGw;
use flannel_backend_vxlan::{OpenVxlan, RouteProtocol, external_interface};
use flannel_benches::{Spread, figures};
use flannel_core::NetworkOptions;
use flannel_netlink::{
    Address, IpFamily, LinkChange, Mac, Neighbour, Netlink, NewLink, NewLinkKind, Route, RouteFilter,
    WriteRequest,
};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{INTERFACE, Lab, LabOptions, Member, OverlayState, PingOptions, Pod, RunningPing};

const HOSTS: usize = 3;
/// A repair that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(20);
/// The interval at which the kernel is read, short against the measured times.
const LOOK: Duration = Duration::from_micros(200);
/// The number of ping answers to wait for before and after the damage.
const ANSWERS: u64 = 20;

fn main() {
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let tries = std::env::args().find_map(|argument| argument.parse().ok());
    let tries = tries.unwrap_or(if is_quick { 3 } else { 10 });
    println!("{:<52} | {:>16} | {:>16}", "", "kernel ms", "silence ms");
    println!("{:<52} | {:>7} {:>8} | {:>7} {:>8}", "damage", "median", "worst", "median", "worst");
    for (network, family, faults) in [
        ("vxlan", IpFamily::V4, &VXLAN[..]),
        ("vxlan", IpFamily::V6, &VXLAN[..]),
        ("direct", IpFamily::V4, &DIRECT[..]),
        ("direct", IpFamily::V6, &DIRECT[..]),
        ("host-gw", IpFamily::V4, &DIRECT[..]),
        ("host-gw", IpFamily::V6, &DIRECT[..]),
    ] {
        let mut site = Site::new(network, family);
        for (name, fault) in faults {
            let runs: Vec<_> = (0..tries).map(|_| site.suffer(*fault)).collect();
            let damage = format!("{network}, {family}: {name}");
            let sum_up = |what: &str, time: fn(&Run) -> Duration| {
                let spread = Spread::of(runs.iter().map(|run| time(run).as_secs_f64() * 1e3)).unwrap();
                figures::keep("healing", what, "ours", &damage, spread);
                spread
            };
            let kernel = sum_up("kernel, ms", |run| run.kernel);
            let silence = sum_up("silence, ms", |run| run.silence);
            println!(
                "{damage:<52} | {:>7.1} {:>8.1} | {:>7.1} {:>8.1}",
                kernel.median, kernel.most, silence.median, silence.most
            );
        }
    }
}

/// A kind of damage to the first host; returns the time right before the system call that does it.
type Damage = fn(&mut DamagedHost) -> Instant;

const VXLAN: [(&str, Damage); 13] = [
    ("no damage", |_| Instant::now()),
    ("routes flushed", |damaged| {
        let routes = damaged.routes();
        damaged.write(routes.into_iter().map(WriteRequest::DeleteRoute).collect())
    }),
    ("permanent neighbours flushed", |damaged| {
        let neighbours = damaged.neighbours();
        damaged.write(neighbours.into_iter().map(WriteRequest::DeleteNeighbour).collect())
    }),
    ("FDB entries deleted", |damaged| {
        let index = damaged.index();
        let entries = damaged.netlink.fdb(index).unwrap();
        damaged.write(entries.into_iter().map(WriteRequest::DeleteFdb).collect())
    }),
    ("all three", |damaged| {
        let index = damaged.index();
        let mut writes: Vec<_> = damaged.routes().into_iter().map(WriteRequest::DeleteRoute).collect();
        writes.extend(damaged.neighbours().into_iter().map(WriteRequest::DeleteNeighbour));
        writes.extend(damaged.netlink.fdb(index).unwrap().into_iter().map(WriteRequest::DeleteFdb));
        damaged.write(writes)
    }),
    ("address removed", |damaged| {
        let index = damaged.index();
        let addresses = damaged.netlink.addresses(index).unwrap().into_iter();
        damaged
            .write(addresses.filter(|address| address.scope == 0).map(WriteRequest::DeleteAddress).collect())
    }),
    ("device set down", |damaged| damaged.change(LinkChange { up: Some(false), ..LinkChange::default() })),
    ("MTU changed", |damaged| damaged.change(LinkChange { mtu: Some(1300), ..LinkChange::default() })),
    ("MAC changed", |damaged| {
        let mac = Some(Mac([0x0e, 0xee, 0, 0, 0, 1]));
        damaged.change(LinkChange { mac, ..LinkChange::default() })
    }),
    ("device deleted", |damaged| {
        let (index, now) = (damaged.index(), Instant::now());
        damaged.netlink.delete_link(index).unwrap();
        now
    }),
    ("device deleted, and a bridge of its name made", |damaged| {
        let (index, now) = (damaged.index(), Instant::now());
        damaged.netlink.delete_link(index).unwrap();
        // The backend may have been faster.
        let _ = damaged.netlink.create_link(&NewLink::new(damaged.device, NewLinkKind::Bridge));
        now
    }),
    ("external interface down and at once up", |damaged| damaged.bounce(Duration::ZERO)),
    ("external interface down for 300 ms", |damaged| damaged.bounce(Duration::from_millis(300))),
];

const DIRECT: [(&str, Damage); 4] = [
    ("no damage", |_| Instant::now()),
    ("direct routes flushed", |damaged| {
        let routes = damaged.direct_routes();
        damaged.write(routes.into_iter().map(WriteRequest::DeleteRoute).collect())
    }),
    ("external interface down and at once up", |damaged| damaged.bounce(Duration::ZERO)),
    ("external interface down for 300 ms", |damaged| damaged.bounce(Duration::from_millis(300))),
];

/// The host that is damaged.
struct DamagedHost {
    netlink: Netlink,
    device: &'static str,
    family: IpFamily,
    /// How long the last fault lasted before the time is taken.
    down_for: Duration,
}

impl DamagedHost {
    fn index(&mut self) -> u32 {
        self.netlink.link(self.device).unwrap().unwrap().index
    }

    fn write(&mut self, writes: Vec<WriteRequest>) -> Instant {
        assert!(!writes.is_empty(), "there must be objects to damage");
        let now = Instant::now();
        self.netlink.apply(&writes).into_iter().for_each(Result::unwrap);
        now
    }

    fn change(&mut self, change: LinkChange) -> Instant {
        let (index, now) = (self.index(), Instant::now());
        self.netlink.change_link(index, &change).unwrap();
        now
    }

    fn routes(&mut self) -> Vec<Route> {
        let index = Some(self.index());
        self.main_routes(RouteFilter {
            index,
            protocol: Some(Route::PROTOCOL_BOOT),
            ..RouteFilter::default()
        })
    }

    fn direct_routes(&mut self) -> Vec<Route> {
        let protocol = Some(RouteProtocol::default().number());
        self.main_routes(RouteFilter { protocol, ..RouteFilter::default() })
    }

    fn main_routes(&mut self, filter: RouteFilter) -> Vec<Route> {
        let filter = RouteFilter { family: Some(self.family), table: Some(Route::MAIN_TABLE), ..filter };
        self.netlink.routes(&filter).unwrap()
    }

    fn neighbours(&mut self) -> Vec<Neighbour> {
        let index = self.index();
        let all = self.netlink.neighbours(index, Some(self.family)).unwrap();
        all.into_iter().filter(Neighbour::is_permanent).collect()
    }

    /// Takes the external interface down and up, and restores its IPv6 address, which the kernel removes meanwhile. The
    /// time counts from when the interface is up.
    fn bounce(&mut self, pause: Duration) -> Instant {
        let index = self.netlink.link(INTERFACE).unwrap().unwrap().index;
        let addresses = self.netlink.addresses(index).unwrap();
        let mut set = |up| {
            let change = LinkChange { up: Some(up), ..LinkChange::default() };
            self.netlink.change_link(index, &change).unwrap();
        };
        set(false);
        std::thread::sleep(pause);
        self.down_for = pause;
        let now = Instant::now();
        set(true);
        let lost = addresses.into_iter().filter(|address| address.scope == 0 && address.net.addr().is_ipv6());
        for address in lost {
            let again = Address { flags: Address::NO_DAD, ..Address::new(index, address.net) };
            self.netlink.add_address(&again).unwrap();
        }
        now
    }

    fn state(&mut self) -> OverlayState {
        let is_direct = |route: &Route| route.protocol == RouteProtocol::default().number();
        OverlayState::read(&mut self.netlink, self.device, self.family, is_direct).unwrap_or_default()
    }
}

/// Three hosts with a network, and a pod on each of the first two.
struct Site {
    damaged: DamagedHost,
    /// The first host's objects before any damage.
    right: OverlayState,
    pods: [Pod; 2],
    to: IpAddr,
    _members: Vec<Member>,
    _lab: Lab,
}

struct Run {
    kernel: Duration,
    silence: Duration,
}

impl Site {
    fn new(network: &str, family: IpFamily) -> Self {
        let lab = Lab::new(&LabOptions { hosts: HOSTS, ..LabOptions::default() }).unwrap();
        let registry = MemoryRegistry::new();
        registry.set_config(config(network, family));
        let start = |host: usize| {
            let host = &lab.hosts[host].namespace;
            let external = external_interface(host, INTERFACE).unwrap();
            let manager = RegistryLeaseManager::new(registry.clone());
            let mut options = match network {
                "host-gw" => NetworkOptions::new(manager, OpenHostGw::new(host.clone()), external),
                _ => NetworkOptions::new(manager, OpenVxlan::new(host.clone()), external),
            };
            options.audit_every = Duration::from_secs(3600);
            Member::start(options).unwrap()
        };
        let members: Vec<_> = (0..HOSTS).map(start).collect();
        for member in &members {
            member.wait_for_peers(HOSTS - 1, LIMIT).unwrap();
        }
        let pods = [0, 1].map(|host| {
            let subnets: Vec<_> = members[host].lease().unwrap().subnet.nets().collect();
            lab.hosts[host].add_pod(&subnets, 1400).unwrap()
        });
        let device = if family == IpFamily::V4 { "flannel.1" } else { "flannel-v6.1" };
        let netlink = Netlink::open_in(&lab.hosts[0].namespace).unwrap();
        let mut damaged = DamagedHost { netlink, device, family, down_for: Duration::ZERO };
        let right = damaged.state();
        assert_eq!(right.routes.len(), HOSTS - 1);
        let to = pods[1].addresses[0];
        Self { damaged, right, pods, to, _members: members, _lab: lab }
    }

    /// One run.
    fn suffer(&mut self, fault: Damage) -> Run {
        let options = PingOptions { timeout: Duration::from_millis(500), ..PingOptions::default() };
        let from = &self.pods[0].namespace;
        let ping = RunningPing::start(from, self.to, Duration::from_millis(1), &options).unwrap();
        ping.wait_for_replies(ANSWERS, LIMIT).unwrap();
        self.damaged.down_for = Duration::ZERO;
        let begun = fault(&mut self.damaged);
        let kernel = self.time_to_heal(begun);
        ping.wait_for_replies(ANSWERS, LIMIT).unwrap();
        // Waits for the last notifications, which must not undo anything.
        std::thread::sleep(Duration::from_millis(100));
        self.time_to_heal(begun);
        let report = ping.stop();
        Run { kernel, silence: report.longest_gap.saturating_sub(self.damaged.down_for) }
    }

    fn time_to_heal(&mut self, begun: Instant) -> Duration {
        let Self { damaged, right, .. } = self;
        loop {
            let state = damaged.state();
            let time = begun.elapsed();
            if state == *right {
                return time;
            }
            assert!(time < LIMIT, "{:#?}", state.differences(right));
            std::thread::sleep(LOOK);
        }
    }
}

fn config(network: &str, family: IpFamily) -> String {
    let overlay = match family {
        IpFamily::V4 => r#""Network":"10.5.0.0/16""#,
        IpFamily::V6 => r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd10:5::/48""#,
    };
    let backend = match network {
        "host-gw" => r#""Type":"host-gw""#,
        "direct" => r#""Type":"vxlan","DirectRouting":true"#,
        _ => r#""Type":"vxlan""#,
    };
    format!("{{{overlay},\"Backend\":{{{backend}}}}}")
}
