//! Measures the paths to the other hosts, inside the tunnel and outside: `flanneld ping`.
//!
//! | exit status of `flanneld ping` | |
//! |---|---|
//! | 0 | every peer that was probed is reached as it should be |
//! | 1 | there is nothing to probe: no peer is known, or none is the one that was named |
//! | 2 | wrong flags |
//! | 3 | some peer is not reached as it should be, which is shown |

mod show;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use flannel_core::ProbeVerdict;
use flannel_node::client;
use flannel_node::probe::{ProbeTarget, Site};
use flannel_registry::CachedNetwork;
use ipnet::IpNet;

use crate::flags::FlagError;
use crate::options::ping::PingOptions;
use crate::show::NOT_IN_ORDER;
use crate::{daemon, options, registry};
pub(crate) use show::painted;
use show::{Pinged, Source};

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

async fn ping(options: &PingOptions) -> Result<Pinged, String> {
    let (source, Site { own, peers }) = find(options).await?;
    let peers = chosen(peers, &options.peers)?;
    let peers = Site { own, peers }.probe(options.count, options.port).await;
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
fn chosen(peers: Vec<ProbeTarget>, names: &[String]) -> Result<Vec<ProbeTarget>, String> {
    if names.is_empty() {
        return Ok(peers);
    }
    let mut found = Vec::new();
    for name in names {
        let (net, address) = (name.parse::<IpNet>().ok(), name.parse::<IpAddr>().ok());
        if net.is_none() && address.is_none() {
            return Err(format!("{name:?} is no address and no subnet of a peer"));
        }
        let is_it = |peer: &&ProbeTarget| {
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
