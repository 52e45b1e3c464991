//! A host of a restless network: peers that come, change and go, and people who break what they can reach, in an order
//! drawn from a seed. Whatever happens, the host ends up with exactly what it should have, nothing else is touched, and
//! the process does not grow.
//!
//! `scripts/soak` makes it long; see there. `FLANNEL_SOAK_SEED` runs one seed again: the same happens in the same order,
//! though not at the same moments, which are the kernel's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]
#![allow(clippy::print_stdout, reason = "whoever runs it for an hour wants to see that it lives")]

mod model;
mod site;
mod vandal;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::Model;
use site::Site;
use vandal::Vandal;

/// How many events happen if nobody asks for more.
const FEW: u64 = 400;

/// After so many events the host is given time to come to rest, and looked at.
const ROUND: u64 = 50;

/// Until then what the process needs has been taken once.
const WARM: u64 = 200;

/// What a process may grow by that runs on: its allocator's waste, which does not depend on the number of events.
const GROWTH: u64 = 8 << 20;

#[test]
fn whatever_happens_the_host_ends_up_with_what_it_should_have() {
    let events = from_environment("FLANNEL_SOAK_EVENTS").unwrap_or(FEW);
    let seed = from_environment("FLANNEL_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..));
    // Captured unless the test fails, or somebody wants to see it.
    println!("FLANNEL_SOAK_SEED={seed} FLANNEL_SOAK_EVENTS={events}");
    Soak::new(seed).run(events);
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

struct Soak {
    random: fastrand::Rng,
    model: Model,
    site: Site,
    vandal: Vandal,
    happened: BTreeMap<&'static str, u64>,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let has_direct_routing = random.bool();
        let site = Site::new(has_direct_routing);
        let model = Model::new(has_direct_routing);
        let vandal = Vandal::new(&site);
        Self { random, model, site, vandal, happened: BTreeMap::new() }
    }

    fn run(mut self, events: u64) {
        let begun = Instant::now();
        let mut warm = None;
        for event in 1..=events {
            self.happen();
            if event % ROUND == 0 || event == events {
                self.site.come_to_rest(&self.model);
                if event >= WARM {
                    warm.get_or_insert_with(Size::now);
                }
            }
            if event % 1000 == 0 {
                println!(
                    "{event} events, {:.0?}, {} peers, {:?}",
                    begun.elapsed(),
                    self.model.len(),
                    Size::now()
                );
            }
        }
        let (warm, end) = (warm.unwrap_or_else(Size::now), Size::now());
        println!(
            "{:#?}\n{events} events in {:.1?}, {warm:?} when warm, {end:?} at the end",
            self.happened,
            begun.elapsed()
        );
        assert_eq!(end.descriptors, warm.descriptors, "descriptors");
        assert!(end.memory <= warm.memory + GROWTH, "the memory grew from {warm:?} to {end:?}");
    }

    /// One event, and a pause as short as those in which things go wrong, or none.
    fn happen(&mut self) {
        let Self { random, model, site, vandal, .. } = self;
        let registry = site.registry.clone();
        let what = match random.u8(..100) {
            0..50 => model.change(random, &registry),
            50..97 => vandal.act(random, model),
            97 => site.restart(true, || {
                for _ in 0..random.u8(..5) {
                    model.change(random, &registry);
                }
            }),
            98 => site.restart(false, || {
                vandal.act(random, model);
            }),
            _ => {
                registry.compact();
                "the registry forgets its history"
            }
        };
        *self.happened.entry(what).or_default() += 1;
        if self.random.bool() {
            std::thread::sleep(Duration::from_micros(self.random.u64(..6000)));
        }
    }
}

/// What this process holds of the machine.
#[derive(Clone, Copy, Debug)]
struct Size {
    descriptors: usize,
    /// Resident, in bytes.
    memory: u64,
}

impl Size {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        Self { descriptors, memory: kilobytes << 10 }
    }
}
