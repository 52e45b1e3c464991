//! How long does a host need until it reaches N peers over VXLAN, and what does it cost?
//!
//! Three ways to put the same objects into the kernel, each in a process of its own and a fresh network namespace:
//!
//! | way | what it does |
//! |---|---|
//! | floor | sends bytes that were prepared before: nothing but the kernel's own work, in the fastest known order |
//! | ours | the VXLAN backend, or the whole network over a registry in memory |
//! | one by one | as upstream flannel writes: one request at a time, each waiting for its answer, all metrics 0 |
//!
//! Five things are timed:
//!
//! | row | what happens |
//! |---|---|
//! | first start | nothing is there; all is written |
//! | one change | on top of N, one peer gets a new device |
//! | event to kernel | on top of N, a host joins the registry; until the kernel tells of the route to it |
//! | restart | a new daemon finds everything in place, and writes nothing |
//! | repair | all routes, neighbours and forwarding entries were flushed by somebody else |
//!
//! Below a first start and a repair stands how long they had a processor for: where others use the machine too, the
//! ratio of these says more than that of the times that passed. A number is the median of the rounds, with the smallest and the largest; a ratio is taken within each round, as the
//! machine may be busier in another one. Memory is that of the process of `ours`: after the first start, and its peak.
//!
//! ```text
//! cargo bench -p flannel-benches --bench convergence                # 1,000, 5,000, 20,000 and 50,000 peers
//! cargo bench -p flannel-benches --bench convergence -- --quick     # 1,000 and 5,000, three rounds
//! cargo bench -p flannel-benches --bench convergence -- 30000 --rounds 9
//! ```
//!
//! Needs root.

#![allow(clippy::print_stdout, reason = "a bench shows its result")]
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

/// What one process measured, by name.
type Measured = BTreeMap<String, f64>;

/// The rows of the table: the name, what it is measured in, and how many of these a second has.
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

/// Up to this size writing one by one takes no longer than a second.
const BEARABLE: u32 = 5_000;
/// Beyond this one it takes half a minute.
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

/// For how long the kernel is at most busy with what is left of one peer.
const TAKEN_APART: Duration = Duration::from_micros(20);

/// One round: each way once.
fn measure(size: u32, round: u32) -> [Measured; 3] {
    let mut ours = run("backend", size);
    ours.extend(run("network", size));
    let is_bearable = size <= BEARABLE || (size <= HARDLY_BEARABLE && round == 0);
    let one_by_one = if is_bearable { run("one-by-one", size) } else { Measured::new() };
    [run("floor", size), ours, one_by_one]
}

/// Measures in a process of its own, so that no way finds what another one left in memory.
fn run(way: &str, size: u32) -> Measured {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--child", way, &size.to_string()]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{way} with {size} peers: {}", output.status);
    // The kernel takes the child's namespaces apart behind our backs, and holds the lock that the next one needs.
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
        other => panic!("no way is called {other}"),
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
