//! Measures the ways to the other hosts, inside the tunnel and outside: `flanneld ping`, and the mesh in the background.
//!
//! | part | what it does |
//! |---|---|
//! | `packet` | writes and reads questions and answers (pure) |
//! | `way` | says what to ask next on one way: answers, losses, the path MTU (pure) |
//! | `verdict` | says in one line what the ways to a peer mean (pure) |
//! | `order` | says whose turn it is, within a budget (pure) |
//! | `history` | remembers a peer from turn to turn (pure) |
//! | `site` | knows who is to be probed, from where |
//! | `wire` | sends and hears, and answers peers |
//! | `mesh` | probes in the background |
//! | `show` | the table, the map and the JSON (pure) |
//!
//! | exit status of `flanneld ping` | |
//! |---|---|
//! | 0 | every peer that was probed is reached as it should be |
//! | 1 | there is nothing to probe: no peer is known, or none is the one that was named |
//! | 2 | wrong flags |
//! | 3 | some peer is not reached as it should be, which is shown |

mod history;
mod mesh;
mod order;
mod packet;
mod show;
mod site;
mod sys;
mod verdict;
mod way;
mod wire;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use flannel_core::ProbeVerdict;
use flannel_registry::CachedNetwork;
use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use ipnet::IpNet;

use crate::flags::FlagError;
use crate::observe::client;
use crate::options::ping::PingOptions;
use crate::show::NOT_IN_ORDER;
use crate::{daemon, options, registry};
use history::History;
pub(crate) use mesh::{MeshNotes, MeshOptions, keep};
pub(crate) use show::painted;
use show::{Pinged, Source};
use site::{Peer, Site, Thoroughness};
use wire::Wire;

/// Runs `flanneld ping`.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let options = options::ping::parse(arguments, |variable| env::var_os(variable))?;
    let pinged = daemon::runtime().and_then(|runtime| runtime.block_on(ping(&options)));
    Ok(match pinged {
        Ok(pinged) => {
            let text = match (options.json, options.mesh) {
                (true, _) => crate::show::json(&pinged, false),
                (false, true) => show::map(&pinged, options.paint),
                (false, false) => show::table(&pinged, options.paint),
            };
            // Whoever closes it early, such as a pager, has seen enough.
            let _ = io::stdout().write_all(text.as_bytes());
            let is_bad = |verdict: ProbeVerdict| verdict.is_fault() || verdict == ProbeVerdict::Unknown;
            match pinged.peers.iter().any(|peer| is_bad(peer.probe.verdict)) {
                true => ExitCode::from(NOT_IN_ORDER),
                false => ExitCode::SUCCESS,
            }
        }
        Err(line) => {
            let _ = writeln!(io::stderr(), "{line}");
            ExitCode::FAILURE
        }
    })
}

/// So many peers are probed at once, so that a network of thousands floods nobody.
const AT_ONCE: usize = 64;

/// The time between two questions on a way.
const PAUSE: Duration = Duration::from_millis(200);

async fn ping(options: &PingOptions) -> Result<Pinged, String> {
    let (source, Site { own, peers }) = find(options).await?;
    let peers = chosen(peers, &options.peers)?;
    let wire = Wire::open(&own, options.port);
    let how = Thoroughness { enough: options.count, most: options.count, pause: PAUSE, sizes: true };
    let probed = stream::iter(&peers).map(|peer| {
        let measured = join_all(own.plans(peer, how).into_iter().map(|plan| wire.measure(plan)));
        async {
            let mut history = History::new();
            history.add(measured.await, &own.context, Instant::now());
            show::Peer { subnet: peer.subnet, public: peer.public, probe: history.show(Instant::now()) }
        }
    });
    let probed = probed.buffered(AT_ONCE).collect::<Vec<_>>();
    let peers = tokio::select! {
        // First what was heard: see `mesh`.
        biased;
        never = wire.listen() => match never {},
        peers = probed => peers,
    };
    Ok(Pinged { source, peers })
}

/// Finds out who is to be probed: from the daemon, or what the host remembers, or etcd.
async fn find(options: &PingOptions) -> Result<(Source, Site), String> {
    let no_daemon = match &options.socket {
        Some(socket) => match client::status(socket) {
            Ok(report) => {
                let waits =
                    "the flanneld on this host has no lease yet, so that it knows no peers".to_owned();
                return Ok((Source::Daemon, Site::of_status(&report.network).ok_or(waits)?));
            }
            Err(error) => error.to_string(),
        },
        None => "the daemon was not asked".to_owned(),
    };
    let no_memory = match CachedNetwork::read(&options.cache, &options.etcd.prefix) {
        Ok(Some(CachedNetwork { config, own, peers, .. })) => {
            return Ok((Source::Cache, Site::of_leases(&config, Some(&own), &peers)));
        }
        Ok(None) => format!("it remembers no network: there is no file {}", options.cache.display()),
        Err(error) => format!("what it remembers cannot be used: {}: {error}", options.cache.display()),
    };
    match registry::read(&options.etcd, options.etcd_api).await {
        Ok(known) => Ok((Source::Registry, Site::of_leases(&known.config, None, &known.leases))),
        Err(no_registry) => Err(format!("nothing to ping: {no_daemon}; {no_memory}; {no_registry}")),
    }
}

/// Picks the peers that were named: by a subnet, or by an address in it or of the host.
fn chosen(peers: Vec<Peer>, names: &[String]) -> Result<Vec<Peer>, String> {
    if names.is_empty() {
        return Ok(peers);
    }
    let mut found = Vec::new();
    for name in names {
        let (net, address) = (name.parse::<IpNet>().ok(), name.parse::<IpAddr>().ok());
        if net.is_none() && address.is_none() {
            return Err(format!("{name:?} is no address and no subnet of a peer"));
        }
        let is_it = |peer: &&Peer| {
            let by_net = net.is_some_and(|net| peer.subnet.nets().any(|other| other == net.trunc()));
            let by_address = address.is_some_and(|it| {
                peer.subnet.contains(it) || peer.public.addresses().any(|other| other == it)
            });
            by_net || by_address
        };
        let peer =
            peers.iter().find(is_it).ok_or_else(|| format!("no peer is {name}; flanneld peers shows all"))?;
        if !found.contains(peer) {
            found.push(peer.clone());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
