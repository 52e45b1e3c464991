//! Simulated clusters; see `flannel_testing::sim` for faults and invariants.
//!
//! ```text
//! cargo test -p flannel-registry --test simulation     # a few small clusters, in seconds
//! scripts/simulate                                     # 20 seeds of 5,000 hosts
//! scripts/simulate --hosts 100 --seed 7                # one seed again
//! FLANNEL_SIM_TRACE=1 scripts/simulate ...             # with everything that happens
//! ```

#![allow(
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test says what it does and may fail in its helpers"
)]

#[path = "simulation/store.rs"]
mod store;

use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use flannel_registry::MemoryRegistry;
use flannel_testing::sim::{SimOptions, SimReport, simulate};

use crate::store::Memory;

/// Runs a seed on its own thread, so that a seed that hangs fails with its name.
fn run(options: SimOptions) -> SimReport {
    let (done, report) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        // The receiver is gone after a timeout.
        let _ = done.send(runtime.block_on(simulate(&Memory(MemoryRegistry::new()), options)));
    });
    // Dozens of times the duration on an idle machine.
    let patience = Duration::from_secs(180 + 3 * options.hosts as u64);
    let again = again(options);
    report.recv_timeout(patience).unwrap_or_else(|error| match error {
        RecvTimeoutError::Timeout => panic!("a seed does not end within {patience:?}; {again}"),
        RecvTimeoutError::Disconnected => panic!("a seed panicked, see above; {again}"),
    })
}

fn again(options: SimOptions) -> String {
    let SimOptions { seed, hosts, .. } = options;
    format!("again with: scripts/simulate --hosts {hosts} --seed {seed}")
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs a seed, prints a summary, and returns the violated invariants.
fn run_seed(options: SimOptions) -> Vec<String> {
    let SimOptions { seed, hosts, .. } = options;
    let begun = Instant::now();
    let report = run(options);
    eprintln!(
        "seed {seed}: {hosts} hosts, {} in the end, {} acts, {:.1} days in {:.1} s; calls per host: {:.1} to join, {} \
         at most; trace {:016x}",
        report.hosts,
        report.actions,
        report.simulated.as_secs_f64() / 86_400.0,
        begun.elapsed().as_secs_f64(),
        report.calls_to_join,
        report.max_calls,
        report.trace
    );
    if let Some(first) = report.violations.first() {
        eprintln!("seed {seed}: {} promises broken, first: {first}", report.violations.len());
        eprintln!("{}", again(options));
    }
    report.violations
}

#[test]
fn a_cluster_heals_from_all_faults_and_violates_no_invariant() {
    let hosts = variable("FLANNEL_SIM_HOSTS").unwrap_or(60) as usize;
    let seeds = match variable("FLANNEL_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("FLANNEL_SIM_SEEDS").unwrap_or(12),
    };
    let (left, failed) = (Mutex::new(seeds), Mutex::new(Vec::new()));
    let next = || left.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..variable("FLANNEL_SIM_JOBS").unwrap_or(2) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let broken = run_seed(SimOptions::new(seed, hosts));
                    if !broken.is_empty() {
                        failed.lock().unwrap().push((seed, broken.into_iter().take(5).collect::<Vec<_>>()));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "seeds that broke promises, and how: {failed:#?}");
}

#[test]
fn a_seed_is_reproducible() {
    let options = SimOptions::new(1, 40);
    let first = run(options);
    assert_eq!(run(options), first);
    assert_ne!(run(SimOptions::new(2, 40)).trace, first.trace, "another seed leads to another life");
}
