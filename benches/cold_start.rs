//! Measures how long `flanneld` takes from its start until it reaches all peers of a network whose leases are in a real
//! etcd v3, and how much memory it uses then.
//!
//! | row | what happens |
//! |---|---|
//! | first start | a host without a lease, a device or a cache; until the daemon is ready |
//! | restart | the same with everything that a daemon leaves when it is stopped |
//! | list | for comparison: all records read by a bare etcd client in pages of the same size, without decoding them |
//! | resident, peak | the daemon's memory once it is idle after the first start (`VmRSS`, `VmHWM`) |
//!
//! Ready means: lease acquired, all peers known, kernel programmed, `subnet.env` written. The bench checks that every
//! peer has its route. A number is the median of the rounds, with the smallest and the largest. Each round has a
//! namespace of its own, with one host and one etcd.
//!
//! ```text
//! cargo bench -p flannel-benches --bench cold_start                # 1,000, 5,000, 20,000 and 50,000 leases
//! cargo bench -p flannel-benches --bench cold_start -- --quick     # 1,000 and 5,000
//! cargo bench -p flannel-benches --bench cold_start -- 30000 --rounds 9
//! FLANNELD=target/debug/flanneld cargo bench -p flannel-benches --bench cold_start
//! BASELINE=path/to/an/older/flanneld cargo bench -p flannel-benches --bench cold_start -- 1000
//! ```
//!
//! With `BASELINE` it measures that program too, in each round and in changing order, and adds the ratio of the two.
//!
//! Needs root, `etcd`, and what building `flanneld` needs.

#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, KvClient, Txn, TxnOp};
use flannel_benches::{Options, ProcessMemory, Spread, figures, machine};
use flannel_netlink::{Namespace, Netlink, RouteFilter};
use flannel_testing::{Directory, Etcd, EtcdOptions, Lab, LabOptions, Process};

const PREFIX: &str = "/coreos.com/network";
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
/// etcd runs in the switch of the lab.
const SWITCH: &str = "192.168.64.254";
/// etcd allows at most 128 operations per transaction.
const PUTS: u32 = 128;
/// As in `flanneld`.
const PAGE: i64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let Options { sizes, rounds } = Options::read();
    let flanneld = build();
    let baseline = std::env::var_os("BASELINE").map(PathBuf::from);
    println!("{}; {rounds} rounds: median (smallest – largest)", machine());
    println!(
        "{:>7} | {:>24} | {:>24} | {:>24} | {:>12} | {:>8}",
        "leases", "first start ms", "restart ms", "list ms", "resident MiB", "peak MiB"
    );
    for size in sizes {
        let mut ours = Vec::new();
        let mut theirs = Vec::new();
        for round in 0..rounds {
            let measure = |program: &Path, into: &mut Vec<Round>| into.push(Round::run(program, size));
            match &baseline {
                Some(baseline) if round % 2 == 1 => {
                    measure(baseline, &mut theirs);
                    measure(&flanneld, &mut ours);
                }
                Some(baseline) => {
                    measure(&flanneld, &mut ours);
                    measure(baseline, &mut theirs);
                }
                None => measure(&flanneld, &mut ours),
            }
        }
        keep(size, &ours);
        print_row(&size.to_string(), &ours);
        if let Some(baseline) = &baseline {
            print_row("before", &theirs);
            print_ratio(&ours, &theirs, [&flanneld, baseline]);
        }
    }
}

fn spread(rounds: &[Round], pick: impl Fn(&Round) -> f64) -> Spread {
    Spread::of(rounds.iter().map(pick)).unwrap()
}

/// Stores the figures for the page.
fn keep(size: u32, rounds: &[Round]) {
    type Pick = fn(&Round) -> f64;
    let times: [(&str, Pick); 3] = [
        ("first start", |round| round.first * 1e3),
        ("restart", |round| round.restart * 1e3),
        ("list", |round| round.list * 1e3),
    ];
    for (name, pick) in times {
        figures::keep("cold_start", "time, ms", name, size, spread(rounds, pick));
    }
    let memory: [(&str, Pick); 2] =
        [("resident", |round| round.memory.resident), ("peak", |round| round.memory.peak)];
    for (name, pick) in memory {
        figures::keep("cold_start", "memory, MiB", name, size, spread(rounds, pick));
    }
}

fn print_row(title: &str, rounds: &[Round]) {
    let [first, restart, list] = [
        spread(rounds, |round| round.first * 1e3),
        spread(rounds, |round| round.restart * 1e3),
        spread(rounds, |round| round.list * 1e3),
    ]
    .map(|spread| spread.to_string());
    let resident = spread(rounds, |round| round.memory.resident).median;
    let peak = spread(rounds, |round| round.memory.peak).median;
    println!("{title:>7} | {first:>24} | {restart:>24} | {list:>24} | {resident:>12.1} | {peak:>8.1}");
}

/// Prints the ratios to the baseline, each taken within a round, and that of the programs' sizes.
fn print_ratio(ours: &[Round], theirs: &[Round], programs: [&Path; 2]) {
    let ratio = |pick: fn(&Round) -> f64| {
        Spread::of(ours.iter().zip(theirs).map(|(ours, theirs)| pick(ours) / pick(theirs))).unwrap()
    };
    let (first, restart) = (ratio(|round| round.first), ratio(|round| round.restart));
    let (resident, peak) = (ratio(|round| round.memory.resident), ratio(|round| round.memory.peak));
    let [ours, theirs] = programs.map(|program| std::fs::metadata(program).unwrap().len() as f64);
    println!(
        "{:>7} | {:>24} | {:>24} | {:>24} | {:>12.3} | {:>8.3}",
        "ratio",
        format!("{first:.3}"),
        format!("{restart:.3}"),
        format!("program size {:.3}", ours / theirs),
        resident.median,
        peak.median
    );
}

/// Builds the daemon in release mode and returns its path, or returns the path in `FLANNELD`.
fn build() -> PathBuf {
    if let Some(flanneld) = std::env::var_os("FLANNELD") {
        return flanneld.into();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--release", "-p", "flanneld-bin"]);
    // Cargo's variables for this package would rebuild dependencies that read them (ring).
    let of_bench = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    variables.filter(|name| of_bench(name)).for_each(|name| {
        command.env_remove(name);
    });
    assert!(command.status().unwrap().success(), "cargo build of flanneld failed");
    // target/release/deps/cold_start-…
    let bench = std::env::current_exe().unwrap();
    bench.ancestors().nth(2).unwrap().join("flanneld")
}

/// Times in seconds.
struct Round {
    first: f64,
    restart: f64,
    list: f64,
    memory: ProcessMemory,
}

impl Round {
    fn run(flanneld: &Path, size: u32) -> Self {
        let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
        let inside = Some((lab.switch().clone(), SWITCH.parse().unwrap()));
        let etcd = Etcd::start_with(EtcdOptions { inside, ..EtcdOptions::default() }).unwrap();
        let host = &lab.hosts[0].namespace;
        let list = fill(host, &etcd.client_url(), size);

        let directory = Directory::new().unwrap();
        let begin = || {
            let mut command = Command::new(flanneld);
            command.arg(format!("--etcd-endpoints={}", etcd.client_url())).arg("--iface=eth0");
            command.arg("--subnet-file").arg(directory.join("subnet.env"));
            start(host, command)
        };
        let (mut daemon, first) = begin();
        assert_eq!(routes(host), size as usize);
        // By then it has audited the kernel, written its cache and returned unused memory.
        std::thread::sleep(Duration::from_secs(5));
        let memory = ProcessMemory::of(&daemon.id().to_string());
        daemon.terminate(PATIENCE).unwrap();
        let (mut daemon, restart) = begin();
        assert_eq!(routes(host), size as usize);
        daemon.terminate(PATIENCE).unwrap();
        Self { first, restart, list, memory }
    }
}

/// Starts the daemon and returns how long it took to be ready.
fn start(host: &Namespace, command: Command) -> (Process, f64) {
    let started = Instant::now();
    let daemon = Process::spawn_in(host, command).unwrap();
    daemon.wait_for_line("Running backend.", PATIENCE).unwrap();
    (daemon, started.elapsed().as_secs_f64())
}

/// Returns the number of routes to peers.
fn routes(host: &Namespace) -> usize {
    let mut netlink = Netlink::open_in(host).unwrap();
    let index = netlink.link("flannel.1").unwrap().unwrap().index;
    let routes = netlink.routes(&RouteFilter { index: Some(index), ..RouteFilter::default() }).unwrap();
    routes.iter().filter(|route| route.gateway.is_some()).count()
}

/// Writes the config and the leases into etcd, and returns how long a bare client takes to read them.
fn fill(host: &Namespace, url: &str, size: u32) -> f64 {
    let work = async {
        let mut client = Client::connect([url], None).await.unwrap();
        client.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
        for first in (0..size).step_by(PUTS as usize) {
            let puts = (first..size.min(first + PUTS)).map(|n| {
                let (key, record) = lease(n);
                TxnOp::put(key, record, None)
            });
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
        }
        let mut reader = client.kv_client().max_decoding_message_size(256 << 20);
        let started = Instant::now();
        assert_eq!(list(&mut reader).await, size as usize);
        started.elapsed().as_secs_f64()
    };
    // A socket belongs to the namespace of the thread that opens it.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    host.run(|| runtime().block_on(work)).unwrap()
}

/// Reads all records, page by page, and counts them.
async fn list(client: &mut KvClient) -> usize {
    let mut from = format!("{PREFIX}/subnets/").into_bytes();
    let mut count = 0;
    loop {
        let options = GetOptions::new().with_range(format!("{PREFIX}/subnets0")).with_limit(PAGE);
        let page = client.get(from.clone(), Some(options)).await.unwrap();
        count += page.kvs().len();
        match page.kvs().last() {
            Some(last) if page.more() => from = [last.key(), &[0]].concat(),
            _ => return count,
        }
    }
}

/// Returns the record of a host, as upstream writes it: 10.1.0.0/24 and on, at 172.16.0.0 and on.
fn lease(n: u32) -> (String, String) {
    let at = |first: [u8; 4], n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::from(first)) + n);
    let (subnet, public) = (at([10, 1, 0, 0], n << 8), at([172, 16, 0, 0], n));
    let [a, b, c, d] = n.to_be_bytes();
    let mac = format!("0e:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
    let record = format!(
        r#"{{"PublicIP":"{public}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    (format!("{PREFIX}/subnets/{subnet}-24"), record)
}
