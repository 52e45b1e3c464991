//! The background probes: each peer in turn, and the responder for their probes.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use flannel_core::{NetworkView, SubnetKey};
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::sleep_until;
use tracing::{info, warn};

use super::history::History;
use super::order::{Schedule, pace};
use super::path::{PathMeasurement, ProbePlan};
use super::results::MeshResults;
use super::site::{ProbeSource, ProbeTarget, Site, Thoroughness};
use super::wire::{ProbeSockets, Responder};
use crate::backends::BackendRegistry;
use crate::text::subnets;

/// The options of the background probes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct MeshOptions {
    /// The interval between the turns of a peer, within the budget.
    pub interval: Duration,
    /// The UDP port of all responders.
    pub port: u16,
}

impl MeshOptions {
    /// Probes each peer once per `interval`, within the budget, at the responders' UDP port.
    #[must_use]
    pub fn new(interval: Duration, port: u16) -> Self {
        Self { interval, port }
    }
}

impl Default for MeshOptions {
    /// Probes each peer every 30 s, at the port 8473.
    fn default() -> Self {
        Self { interval: Duration::from_secs(30), port: 8473 }
    }
}

/// How often the peers are read; a network of thousands takes a millisecond.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The maximum number of concurrent turns; a turn of a silent peer takes seconds.
const AT_ONCE: usize = 64;

/// Probes the peers of a network in the background, and answers their probes.
#[derive(Debug)]
pub struct Mesh {
    options: MeshOptions,
    network: NetworkView,
    backends: BackendRegistry,
    results: MeshResults,
}

impl Mesh {
    /// Prepares to probe the peers of this network.
    #[must_use]
    pub fn new(options: MeshOptions, network: NetworkView, backends: BackendRegistry) -> Self {
        Self { options, network, backends, results: MeshResults::default() }
    }

    /// Returns the results, which are updated while the mesh runs.
    #[must_use]
    pub fn results(&self) -> MeshResults {
        self.results.clone()
    }

    /// Probes and answers, and never returns.
    pub async fn run(self) -> Infallible {
        let mut reported = Vec::new();
        loop {
            let Some(site) = self.site().filter(|site| !site.own.context.interface.is_empty()) else {
                tokio::time::sleep(LOOK_EVERY / 5).await;
                continue;
            };
            let (responder, failed) = Responder::open(&site.own, self.options.port);
            if failed != reported {
                failed.iter().for_each(|why| {
                    warn!("Failed to open the probe responder at {why}; peers get no answer there")
                });
                reported = failed;
            }
            info!("Probing {} peers, each every {:?} at most", site.peers.len(), self.options.interval);
            let wire = ProbeSockets::open(&site.own, self.options.port);
            let prober = Prober { mesh: &self, wire: &wire, responder: &responder };
            tokio::select! {
                // Answers first: after a delay of this process, an answer that arrived in time must not count as lost.
                biased;
                never = wire.listen() => match never {},
                never = responder.serve() => match never {},
                () = prober.ask(site) => {}
            }
        }
    }

    fn site(&self) -> Option<Site> {
        Site::of_status(&self.network.status(), &self.backends)
    }
}

/// A mesh with the sockets for this host's current addresses.
struct Prober<'a> {
    mesh: &'a Mesh,
    wire: &'a ProbeSockets,
    responder: &'a Responder,
}

impl Prober<'_> {
    /// Probes until this host's addresses change.
    async fn ask(&self, site: Site) {
        let mut order = Schedule::new(fastrand::u64(..));
        let (own, mut peers) = (site.own.clone(), self.take_in(site, &mut order));
        let mut turns = FuturesUnordered::new();
        // A second concurrent turn of a peer would report an outage as packet loss.
        let mut asked = BTreeSet::new();
        let mut look_at = tokio::time::Instant::now() + LOOK_EVERY;
        // Hosts that start together begin at different times.
        let mut turn_at = tokio::time::Instant::now()
            + pace(self.mesh.options.interval, peers.len()).mul_f64(fastrand::f64() / 4.0);
        loop {
            tokio::select! {
                Some((subnet, measured)) = turns.next() => {
                    asked.remove(&subnet);
                    self.note(subnet, measured, &own);
                }
                () = sleep_until(look_at) => {
                    look_at = tokio::time::Instant::now() + LOOK_EVERY;
                    let Some(site) = self.mesh.site() else { continue };
                    if site.own != own {
                        return;
                    }
                    peers = self.take_in(site, &mut order);
                }
                () = sleep_until(turn_at) => {
                    turn_at = tokio::time::Instant::now() + pace(self.mesh.options.interval, peers.len());
                    let next = if turns.len() < AT_ONCE { order.next() } else { None };
                    if let Some(peer) = next.and_then(|subnet| peers.get(&subnet))
                        && asked.insert(peer.subnet)
                    {
                        turns.push(turn(self.wire, peer.subnet, self.plans(peer, &own)));
                    }
                }
            }
        }
    }

    fn take_in(&self, site: Site, order: &mut Schedule) -> BTreeMap<SubnetKey, ProbeTarget> {
        let inside: BTreeSet<_> = site
            .peers
            .iter()
            .filter(|peer| peer.is_ours)
            .flat_map(|peer| peer.inside.iter().copied())
            .collect();
        self.responder.set_peers(inside);
        let peers: BTreeMap<_, _> = site.peers.into_iter().map(|peer| (peer.subnet, peer)).collect();
        order.set(&peers.keys().copied().collect());
        let pace = pace(self.mesh.options.interval, peers.len());
        let mut results = self.mesh.results.lock();
        results.round = pace * u32::try_from(peers.len()).unwrap_or(u32::MAX);
        results.peers.retain(|subnet, _| peers.contains_key(subnet));
        drop(results);
        peers
    }

    /// Plans a turn of a peer.
    fn plans(&self, peer: &ProbeTarget, own: &ProbeSource) -> Vec<ProbePlan> {
        let mut results = self.mesh.results.lock();
        let history = results.peers.entry(peer.subnet).or_insert_with(History::new);
        let sizes = history.measures_sizes();
        let how = Thoroughness { enough: 1, most: 3, pause: Duration::ZERO, sizes };
        let mut plans = own.plans(peer, how);
        plans.iter_mut().for_each(|plan| history.narrow(plan));
        plans
    }

    fn note(&self, subnet: SubnetKey, measured: Vec<PathMeasurement>, own: &ProbeSource) {
        let mut results = self.mesh.results.lock();
        let count =
            |of: fn(&PathMeasurement) -> u32| measured.iter().map(|path| u64::from(of(path))).sum::<u64>();
        results.sent += count(|path| path.sent);
        results.lost += count(|path| path.lost);
        // The peer may have left meanwhile.
        let Some(history) = results.peers.get_mut(&subnet) else { return };
        let before = history.probe().verdict;
        history.add(measured, &own.context, Instant::now());
        let probe = history.probe();
        if probe.verdict != before && (probe.verdict.is_fault() || before.is_fault()) {
            let (name, detail) = (subnets(&subnet), &probe.detail);
            match probe.verdict.is_fault() {
                true => warn!("Probing {name}: {}: {detail}", probe.verdict),
                false => info!("Probing {name}: {}", probe.verdict),
            }
        }
    }
}

/// Runs a turn of a peer: all its paths at once.
async fn turn(
    wire: &ProbeSockets,
    subnet: SubnetKey,
    plans: Vec<ProbePlan>,
) -> (SubnetKey, Vec<PathMeasurement>) {
    (subnet, join_all(plans.into_iter().map(|plan| wire.measure(plan))).await)
}
