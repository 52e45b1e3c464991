//! Measures what a host costs its registry and its processor in a network of thousands.
//!
//! Simulates whole clusters in one process on a paused clock: every host has its own manager, its own reconcile loop
//! and a kernel made of maps (see `flannel_testing::sim`). Three of five start at the same moment, the others in groups
//! within an hour; then half a quiet day passes, and the bench checks that every host holds a lease of its own and
//! exactly the current peers.
//!
//! | column | what |
//! |---|---|
//! | calls to join | mean per host to the registry, until all had joined |
//! | calls when idle | mean per host in half a quiet day after that |
//! | per pair µs | total processor time over the number of pairs of hosts: the cost for a host to learn, program and keep a peer |
//! | per pair bytes | the peak memory of the process over the same number |
//! | ratio | calls to join, compared with the smallest run |
//!
//! ```text
//! cargo bench -p flannel-benches --bench scale             # up to 10,000 hosts: 16 GiB of memory
//! cargo bench -p flannel-benches --bench scale -- --quick  # up to 1,000
//! cargo bench -p flannel-benches --bench scale -- 3000     # others, the smallest first
//! ```

#![allow(clippy::print_stdout, reason = "a bench prints its result")]
#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

#[path = "../flannel-registry/tests/simulation/store.rs"]
mod store;

use flannel_benches::{ProcessMemory, figures, processor_time};
use flannel_registry::MemoryRegistry;
use flannel_testing::sim::{SimOptions, simulate};

use crate::store::Memory;

const SIZES: [usize; 6] = [100, 250, 1_000, 2_500, 5_000, 10_000];
const QUICK: [usize; 3] = [100, 250, 1_000];

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = match () {
        () if !asked.is_empty() => &asked[..],
        () if std::env::args().any(|argument| argument == "--quick") => &QUICK[..],
        () => &SIZES[..],
    };
    println!(
        "{:>7} | {:>13} {:>6} | {:>14} | {:>11} | {:>14}",
        "hosts", "calls to join", "ratio", "calls when idle", "per pair µs", "per pair bytes"
    );
    let mut first = None;
    for hosts in sizes.iter().copied() {
        let begun = processor_time();
        let mut options = SimOptions::new(1, hosts);
        options.faults = false;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let report = runtime.block_on(simulate(&Memory(MemoryRegistry::new()), options));
        assert!(report.violations.is_empty(), "{:#?}", report.violations);
        assert_eq!(report.hosts, hosts);
        let pairs = (hosts * hosts) as f64;
        let time = (processor_time() - begun) * 1e6 / pairs;
        // The sizes grow, so the peak is this one's.
        let memory = ProcessMemory::of("self").peak * 1024.0 * 1024.0 / pairs;
        let keep = |what, value: f64| figures::keep("scale", what, "simulated", hosts, value.into());
        keep("calls to join", report.calls_to_join);
        keep("calls in half a quiet day", report.calls_when_idle);
        keep("processor time per pair of hosts, µs", time);
        keep("memory per pair of hosts, bytes", memory);
        println!(
            "{hosts:>7} | {:>13.2} {:>6.2} | {:>14.2} | {time:>11.2} | {memory:>14.0}",
            report.calls_to_join,
            report.calls_to_join / *first.get_or_insert(report.calls_to_join),
            report.calls_when_idle,
        );
    }
}
