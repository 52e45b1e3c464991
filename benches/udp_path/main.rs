//! Measures the throughput of the UDP backend beside the raw link, the kernel's VXLAN and a path with one packet per
//! system call.
//!
//! All four are up at once between the same two hosts, network namespaces joined by a bridge; traffic goes from host to
//! host by the addresses of each. Every figure is the median of rounds in which all paths were measured in turn, with
//! TCP under one congestion control, which is printed. `×` is the ratio of two medians of this run; the ratio of the
//! raw link to one packet per call is the upper limit of any path, because the generator is the same.
//!
//! * `one`, `four`: TCP from host to host, Gbit/s; `both`: one stream each way at once, their sum.
//! * `64 B`: datagrams of 64 bytes of payload that arrived, thousands per second, sent with a system call each, and
//!   `bursts`, sent 64 at a time; `loss`: the share that did not arrive, of those sent with a system call each.
//! * `rtt`: median round trip of a ping at rest, and `loaded`: beside a TCP stream, µs.
//! * `cpu`: CPU time of this process (both ends, generator, packet path) for one stream, seconds per GiB.
//!
//! ```text
//! cargo bench -p flannel-benches --bench udp_path                          # 3 rounds, the machine's default
//! cargo bench -p flannel-benches --bench udp_path -- --rounds 5 --control reno
//! cargo bench -p flannel-benches --bench udp_path -- --only 'udp backend' --figures 'one,rtt,flood'
//! cargo bench -p flannel-benches --bench udp_path -- --quick               # one round
//! ```
//!
//! Needs root.

#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

mod datagrams;
mod flood;
mod paths;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_benches::figures::keep;
use flannel_benches::{Spread, machine, median};
use flannel_netlink::Namespace;
use flannel_testing::{PingOptions, ping, throughput};

use paths::{Path, Site};

/// The duration of each TCP figure in a round.
const TIME: Duration = Duration::from_millis(700);

/// The timeout of a ping, which is also the value of a lost one: the stream beside it lasts longer.
const LOST: Duration = Duration::from_millis(200);

/// The figures, in the order of the columns.
const COLUMNS: [&str; 9] = ["one", "four", "both", "64 B", "loss %", "bursts", "rtt", "loaded", "cpu"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let rounds = if arguments.iter().any(|argument| argument == "--quick") { 1 } else { 3 };
    let rounds: usize = option("--rounds").map_or(rounds, |rounds| rounds.parse().unwrap());
    let only = option("--only");
    let wanted = option("--figures");
    let is_wanted =
        |name: &str| wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|one| one == name));

    let site = Site::new(option("--control").as_deref());
    let control = site.hosts[0].read_sysctl("net/ipv4/tcp_congestion_control").unwrap();
    println!("{}", machine());
    println!("TCP with {control}; {rounds} rounds of {} ms for each figure, medians\n", TIME.as_millis());
    let paths: Vec<&Path> =
        site.paths.iter().filter(|path| only.as_ref().is_none_or(|only| path.name.contains(only))).collect();
    let mut figures = vec![vec![Vec::new(); COLUMNS.len()]; paths.len()];
    for _ in 0..rounds {
        for (path, figures) in paths.iter().zip(&mut figures) {
            for (figure, list) in measure(&site, path, &is_wanted).into_iter().zip(figures) {
                list.push(figure);
            }
        }
    }
    let medians: Vec<Vec<f64>> = paths.iter().zip(figures).map(|(path, row)| sum_up(path, row)).collect();
    print(&paths, &medians);
    if let Some(path) = paths.iter().find(|path| path.name == paths::UDP && is_wanted("flood")) {
        show_flood(&site, path, rounds);
    }
    for line in site.counts() {
        println!("{line}");
    }
}

/// Stores the figures of a path for the page, and returns the median of each column, NaN for those not measured.
fn sum_up(path: &Path, row: Vec<Vec<f64>>) -> Vec<f64> {
    let columns = COLUMNS.iter().zip(row).map(|(column, figures)| {
        let Some(spread) = Spread::of(figures.into_iter().filter(|figure| figure.is_finite())) else {
            return f64::NAN;
        };
        keep("udp_path", column, path.name, "", spread);
        spread.median
    });
    columns.collect()
}

/// Measures a path once, with NaN for figures not requested.
fn measure(site: &Site, path: &Path, is_wanted: &impl Fn(&str) -> bool) -> [f64; COLUMNS.len()] {
    let [from, to] = [&site.hosts[0], &site.hosts[1]];
    let mut figures = [f64::NAN; COLUMNS.len()];
    let mut set = |names: &[&str], measure: &dyn Fn() -> Vec<f64>| {
        if names.iter().any(|name| is_wanted(name)) {
            for (name, figure) in names.iter().zip(measure()) {
                let column = COLUMNS.iter().position(|column| column == name).unwrap();
                figures[column] = figure;
            }
        }
    };
    set(&["one", "cpu"], &|| {
        let before = cpu_time();
        let one = throughput(from, to, path.to, TIME, 1).unwrap();
        let cpu = (cpu_time() - before).as_secs_f64() / (one.bytes as f64 / f64::from(1 << 30));
        vec![one.bits_per_second() / 1e9, cpu]
    });
    set(&["four"], &|| vec![throughput(from, to, path.to, TIME, 4).unwrap().bits_per_second() / 1e9]);
    set(&["both"], &|| vec![both_ways(from, to, path)]);
    set(&["64 B", "loss %"], &|| {
        let single = datagrams::send(from, to, path.to, TIME, 1);
        vec![single.per_second() / 1e3, single.loss() * 100.0]
    });
    set(&["bursts"], &|| vec![datagrams::send(from, to, path.to, TIME, 64).per_second() / 1e3]);
    set(&["rtt"], &|| vec![round_trip(from, path.to, TIME / 5)]);
    set(&["loaded"], &|| {
        vec![std::thread::scope(|scope| {
            let load = scope.spawn(|| throughput(from, to, path.to, TIME, 1).unwrap());
            std::thread::sleep(TIME / 5);
            let loaded = round_trip(from, path.to, TIME / 2);
            load.join().unwrap();
            loaded
        })]
    });
    figures
}

fn both_ways(from: &Namespace, to: &Namespace, path: &Path) -> f64 {
    std::thread::scope(|scope| {
        let there = scope.spawn(|| throughput(from, to, path.to, TIME, 1).unwrap());
        let back = scope.spawn(|| throughput(to, from, path.from, TIME, 1).unwrap());
        (there.join().unwrap().bits_per_second() + back.join().unwrap().bits_per_second()) / 1e9
    })
}

/// The median round-trip time, in microseconds.
fn round_trip(from: &Namespace, to: IpAddr, time: Duration) -> f64 {
    let options = PingOptions { timeout: LOST, ..PingOptions::default() };
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < time || times.len() < 9 {
        times.push(ping(from, to, &options).unwrap_or(LOST).as_secs_f64() * 1e6);
    }
    median(times)
}

fn print(paths: &[&Path], medians: &[Vec<f64>]) {
    print!("{:<38}", "");
    COLUMNS.iter().for_each(|column| print!("{column:>9}"));
    println!();
    for (path, row) in paths.iter().zip(medians) {
        print!("{:<38}", path.name);
        for figure in row {
            print!("{:>9}", if *figure < 100.0 { format!("{figure:.2}") } else { format!("{figure:.0}") });
        }
        println!();
    }
    let row = |name: &str| paths.iter().position(|path| path.name == name).map(|at| &medians[at]);
    for (path, baseline) in
        [(paths::UDP, paths::VXLAN), (paths::UDP, paths::PLAIN), (paths::RAW, paths::PLAIN)]
    {
        let (Some(figures), Some(base)) = (row(path), row(baseline)) else { continue };
        print!("{:<38}", format!("{path} × {baseline}"));
        figures.iter().zip(base).for_each(|(figure, base)| print!("{:>9.2}", figure / base));
        println!();
        if path == paths::UDP {
            print!("{:<38}", "  aim");
            COLUMNS.iter().for_each(|column| print!("{:>9}", aim(column, baseline)));
            println!();
        }
    }
}

/// The target of the UDP backend, relative to another path.
fn aim(column: &str, baseline: &str) -> &'static str {
    match (baseline, column) {
        (paths::VXLAN, "one") => "≥ 1.00",
        (paths::VXLAN, "four") => "≥ 0.75",
        (paths::VXLAN, "both") => "≥ 0.90",
        (paths::VXLAN, "rtt") => "≤ 1.50",
        (paths::PLAIN, "64 B" | "bursts") => "≥ 5.00",
        _ => "",
    }
}

/// Prints the effect of a flood on one stream of the UDP backend.
fn show_flood(site: &Site, path: &Path, rounds: usize) {
    let runs: Vec<_> = (0..rounds).map(|_| flood::measure(site, path, TIME)).collect();
    let [quiet, beside, flooded] = [0, 1, 2].map(|at| median(runs.iter().map(|run| run[at])));
    println!(
        "\none stream while ten strangers flood: {quiet:.2} Gbit/s in peace, {beside:.2} with the flood at an idle \
         socket, {flooded:.2} with the flood at the backend's port ({:.2} × idle socket, {:.2} × peace)",
        flooded / beside,
        flooded / quiet
    );
}

/// Returns the CPU time of this process, in the kernel and outside (proc_pid_stat(5)).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name, in parentheses, may contain spaces.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // A tick is a hundredth of a second wherever /proc is mounted (USER_HZ, asm-generic/param.h).
    Duration::from_millis(ticks * 10)
}
