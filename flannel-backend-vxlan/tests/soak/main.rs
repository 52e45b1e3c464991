//! A soak test: peers join, change and leave, and chaos changes kernel objects, in an order drawn from a seed. After each
//! round the host has exactly the desired objects, foreign objects are unchanged, and the process has not grown.
//!
//! `scripts/soak` runs it for longer. `FLANNEL_SOAK_SEED` repeats the events of a seed in the same order, though not at
//! the same times.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]
#![allow(clippy::print_stdout, reason = "shows the progress of an hour")]

mod chaos;
mod host;
mod model;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chaos::Chaos;
use host::SoakHost;
use model::Model;

/// The default number of events.
const DEFAULT_EVENTS: u64 = 400;

/// The number of events after which the host is checked.
const ROUND: u64 = 50;

/// The number of events after which the process has reached its size.
const WARM_UP: u64 = 200;

/// How much the process may grow afterwards, in bytes: fragmentation, which doesn't depend on the number of events.
const GROWTH: u64 = 8 << 20;

#[test]
fn the_host_converges_after_any_sequence_of_events() {
    let events = from_environment("FLANNEL_SOAK_EVENTS").unwrap_or(DEFAULT_EVENTS);
    let seed = from_environment("FLANNEL_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    // Printed if the test fails or runs with --nocapture.
    println!("FLANNEL_SOAK_SEED={seed} FLANNEL_SOAK_EVENTS={events}");
    Soak::new(seed).run(events);
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

struct Soak {
    random: fastrand::Rng,
    model: Model,
    host: SoakHost,
    chaos: Chaos,
    counts: BTreeMap<&'static str, u64>,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let has_direct_routing = random.bool();
        let host = SoakHost::new(has_direct_routing);
        let model = Model::new(has_direct_routing);
        let chaos = Chaos::new(&host);
        Self { random, model, host, chaos, counts: BTreeMap::new() }
    }

    fn run(mut self, events: u64) {
        let begun = Instant::now();
        let mut warm = None;
        for event in 1..=events {
            self.step();
            if event % ROUND == 0 || event == events {
                self.host.check(&self.model);
                if event >= WARM_UP {
                    warm.get_or_insert_with(ProcessSize::now);
                }
            }
            if event % 1000 == 0 {
                println!(
                    "{event} events, {:.0?}, {} peers, {:?}",
                    begun.elapsed(),
                    self.model.len(),
                    ProcessSize::now()
                );
            }
        }
        let (warm, end) = (warm.unwrap_or_else(ProcessSize::now), ProcessSize::now());
        println!(
            "{:#?}\n{events} events in {:.1?}, {warm:?} when warm, {end:?} at the end",
            self.counts,
            begun.elapsed()
        );
        assert_eq!(end.descriptors, warm.descriptors, "descriptors");
        assert!(end.memory <= warm.memory + GROWTH, "memory grew from {warm:?} to {end:?}");
    }

    /// Runs one event, followed by a pause of up to 6 ms or none.
    fn step(&mut self) {
        let Self { random, model, host, chaos, .. } = self;
        let registry = host.registry.clone();
        let event = match random.u8(..100) {
            0..50 => model.change(random, &registry),
            50..97 => chaos.act(random, model),
            97 => host.restart(true, || {
                for _ in 0..random.u8(..5) {
                    model.change(random, &registry);
                }
            }),
            98 => host.restart(false, || {
                chaos.act(random, model);
            }),
            _ => {
                registry.compact();
                "registry compacted"
            }
        };
        *self.counts.entry(event).or_default() += 1;
        if self.random.bool() {
            std::thread::sleep(Duration::from_micros(self.random.u64(..6000)));
        }
    }
}

/// The resources of this process.
#[derive(Clone, Copy, Debug)]
struct ProcessSize {
    descriptors: usize,
    /// The resident memory, in bytes.
    memory: u64,
}

impl ProcessSize {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        Self { descriptors, memory: kilobytes << 10 }
    }
}
