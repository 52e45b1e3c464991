//! Measures how long a host takes to reach N peers over VXLAN, and the cost.
//!
//! Three ways to write the same objects to the kernel, each in a process of its own and a new network namespace:
//!
//! | way | what it does |
//! |---|---|
//! | floor | sends pre-encoded messages: only the kernel's own work, in the fastest known order |
//! | ours | the VXLAN backend, or the whole network over a registry in memory |
//! | one by one | as upstream flannel writes: one request at a time, each waiting for its answer, all metrics 0 |
//!
//! The timed operations:
//!
//! | row | what happens |
//! |---|---|
//! | first start | writes all objects to an empty namespace |
//! | one change | with N peers, one peer gets a new device |
//! | event to kernel | with N peers, a host joins the registry; until the kernel notifies of the route to it |
//! | restart | a new daemon finds everything in place and writes nothing |
//! | repair | after all routes, neighbours and FDB entries were flushed externally |
//!
//! The rows marked CPU contain the processor time; on a shared machine their ratio says more than that of elapsed
//! times. A number is the median of the rounds, with the smallest and the largest; a ratio is taken within each round,
//! as the load of the machine may change between rounds. Memory is that of the process of `ours`: after the first
//! start, and its peak.
//!
//! ```text
//! cargo bench -p flannel-benches --bench convergence                # 1,000, 5,000, 20,000 and 50,000 peers
//! cargo bench -p flannel-benches --bench convergence -- --quick     # 1,000 and 5,000, three rounds
//! cargo bench -p flannel-benches --bench convergence -- 30000 --rounds 9
//! ```
//!
//! Needs root.

#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed bench")]

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use flannel_benches::{Options, Spread, figures, machine};

mod floor;
mod one_by_one;
mod ours;
mod peers;
mod site;

/// The measurements of one process, by name.
type Measured = BTreeMap<String, f64>;

/// The rows of the table: the name, the unit, and the number of units per second.
const ROWS: [(&str, &str, f64); 7] = [
    ("first start", "ms", 1e3),
    ("first start CPU", "ms", 1e3),
    ("one change", "µs", 1e6),
    ("event to kernel", "µs", 1e6),
    ("restart", "ms", 1e3),
    ("repair", "ms", 1e3),
    ("repair CPU", "ms", 1e3),
];

/// The columns.
const WAYS: [&str; 3] = ["floor", "ours", "one by one"];

/// Up to this size, writing one by one takes at most a second.
const BEARABLE: u32 = 5_000;
/// Beyond this size, it takes half a minute.
const HARDLY_BEARABLE: u32 = 20_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, way, size] = arguments.as_slice()
        && flag == "--child"
    {
        return child(way, size.parse().unwrap());
    }
    let Options { sizes, rounds } = Options::read();
    println!("{}; {rounds} rounds: median (smallest – largest)", machine());
    println!(
        "{:>7} {:<16}| {:>28} | {:>28} | {:>22} | {:>13}",
        "peers", "", WAYS[0], WAYS[1], "ratio", WAYS[2]
    );
    for size in sizes {
        let rounds: Vec<[Measured; 3]> = (0..rounds).map(|round| measure(size, round)).collect();
        for row in ROWS {
            print_row(size, row, &rounds);
        }
        let memory = |name: &str| Spread::of(rounds.iter().filter_map(|round| round[1].get(name).copied()));
        if let (Some(resident), Some(peak)) = (memory("resident"), memory("peak")) {
            figures::keep("convergence", "memory, MiB", "backend", size, resident);
            println!(
                "{size:>7} {:<16}| {:>28} | {:>22.1} MiB | peak {:.1} MiB",
                "memory", "", resident.median, peak.median
            );
        }
    }
}

/// How long the kernel is busy at most with freeing the objects of one peer.
const TAKEN_APART: Duration = Duration::from_micros(20);

/// A round: each way once.
fn measure(size: u32, round: u32) -> [Measured; 3] {
    let mut ours = run("backend", size);
    ours.extend(run("network", size));
    let is_bearable = size <= BEARABLE || (size <= HARDLY_BEARABLE && round == 0);
    let one_by_one = if is_bearable { run("one-by-one", size) } else { Measured::new() };
    [run("floor", size), ours, one_by_one]
}

/// Measures in a process of its own, so that no way reuses the memory of another.
fn run(way: &str, size: u32) -> Measured {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--child", way, &size.to_string()]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{way} with {size} peers: {}", output.status);
    // The kernel frees the child's namespaces in the background and holds a lock that the next process needs.
    thread::sleep(Duration::from_millis(300) + TAKEN_APART * size);
    let text = String::from_utf8(output.stdout).unwrap();
    let pair =
        |line: &str| line.rsplit_once('=').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
    text.lines().filter_map(pair).collect()
}

fn child(way: &str, size: u32) {
    let measured = match way {
        "floor" => floor::measure(size),
        "backend" => ours::measure(size),
        "network" => ours::measure_network(size),
        "one-by-one" => one_by_one::measure(size),
        other => panic!("unknown way {other}"),
    };
    for (name, value) in measured {
        println!("{name}={value}");
    }
}

fn print_row(size: u32, (name, unit, per_second): (&str, &str, f64), rounds: &[[Measured; 3]]) {
    let of = |way: usize| rounds.iter().map(move |round| round[way].get(name).copied());
    let shown = |way: usize| {
        let spread = Spread::of(of(way).flatten().map(|seconds| seconds * per_second));
        spread.map_or_else(String::new, |spread| {
            figures::keep("convergence", &format!("{name}, {unit}"), WAYS[way], size, spread);
            format!("{spread:.1} {unit}")
        })
    };
    let ratios = of(0).zip(of(1)).filter_map(|(floor, ours)| Some(ours? / floor?));
    let ratio = Spread::of(ratios).map_or_else(String::new, |spread| {
        figures::keep("convergence", &format!("{name}, ratio"), "ours to floor", size, spread);
        format!("{spread:.2}")
    });
    println!("{size:>7} {name:<16}| {:>28} | {:>28} | {ratio:>22} | {:>13}", shown(0), shown(1), shown(2));
}
