//! Whole clusters, simulated: see `flannel_testing::sim` for what happens in them and what must hold.
//!
//! ```text
//! cargo test -p flannel-registry --test simulation                    # a few small clusters, in seconds
//! FLANNEL_SIM_SEED=7 FLANNEL_SIM_HOSTS=100 cargo test ...             # one seed again
//! FLANNEL_SIM_SEED=7 FLANNEL_SIM_TRACE=1 ... -- --nocapture           # with everything that happens
//! scripts/simulate 20 1000                                            # seeds and hosts of a long run
//! ```

#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test says what it does and may fail in its helpers"
)]

use std::sync::Arc;
use std::time::Instant;

use flannel_core::{LeaseManager, SubnetRegistry};
use flannel_registry::{LocalManager, LocalManagerOptions, MemoryRegistry, TokioClock};
use flannel_testing::sim::{Link, SimOptions, SimReport, SimStore, simulate};

struct Memory(MemoryRegistry);

impl SimStore for Memory {
    fn registry(&self) -> Arc<dyn SubnetRegistry> {
        Arc::new(self.0.clone())
    }

    fn manager(&self, link: Link, seed: u64) -> Arc<dyn LeaseManager> {
        // Nobody sleeps here but the clock of tokio, and to look at another one costs thousands of wakes a day and host.
        let clock = Arc::new(TokioClock::new());
        let options = LocalManagerOptions { clock, seed: Some(seed), ..LocalManagerOptions::default() };
        Arc::new(LocalManager::with_options(link, options))
    }

    fn set_config(&self, text: &str) {
        self.0.set_config(text);
    }

    fn put_raw(&self, key: &str, value: &str) {
        self.0.put_raw(key, value.as_bytes());
    }

    fn remove_raw(&self, key: &str) {
        self.0.remove_raw(key);
    }

    fn compact(&self) {
        self.0.compact();
    }

    fn backup(&self) -> Box<dyn FnOnce()> {
        let (store, backup) = (self.0.clone(), self.0.backup());
        Box::new(move || store.restore(backup))
    }
}

fn run(options: SimOptions) -> SimReport {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulate(&Memory(MemoryRegistry::new()), options))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn a_cluster_heals_from_everything_and_breaks_no_promise_meanwhile() {
    let hosts = variable("FLANNEL_SIM_HOSTS").unwrap_or(60);
    let seeds = match variable("FLANNEL_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("FLANNEL_SIM_SEEDS").unwrap_or(6),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let begun = Instant::now();
        let report = run(SimOptions { seed, hosts: hosts as usize });
        eprintln!(
            "seed {seed}: {hosts} hosts, {} in the end, {} acts, {:.1} days in {:.1} s; calls per host: {:.1} to join, \
             {} at most; trace {:016x}",
            report.hosts,
            report.acts,
            report.simulated.as_secs_f64() / 86_400.0,
            begun.elapsed().as_secs_f64(),
            report.calls_to_join,
            report.most_calls,
            report.trace
        );
        if let Some(first) = report.violations.first() {
            eprintln!("seed {seed}: {} promises broken, first: {first}", report.violations.len());
            eprintln!(
                "again with: FLANNEL_SIM_SEED={seed} FLANNEL_SIM_HOSTS={hosts} cargo test -p flannel-registry --test \
                 simulation"
            );
            failed.push((seed, report.violations.into_iter().take(5).collect::<Vec<_>>()));
        }
    }
    assert!(failed.is_empty(), "seeds that broke promises, and how: {failed:#?}");
}

#[test]
fn a_seed_leads_to_the_same_life_each_time() {
    let options = SimOptions { seed: 1, hosts: 40 };
    let first = run(options);
    assert_eq!(run(options), first);
    assert_ne!(
        run(SimOptions { seed: 2, ..options }).trace,
        first.trace,
        "another seed leads to another life"
    );
}
