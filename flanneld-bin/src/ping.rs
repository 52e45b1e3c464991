//! `flanneld ping`: measures the paths to the other hosts, inside and outside of the tunnel.

mod show;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use flannel_core::ProbeVerdict;
use flannel_node::probe::{ProbeTarget, Site};
use flannel_node::{BackendRegistry, client};
use flannel_registry::CachedNetwork;
use ipnet::IpNet;

use crate::Host;
use crate::flags::FlagError;
use crate::options::ping::PingOptions;
use crate::show::FAULT;
use crate::{daemon, options, registry};
use show::{PeerSource, PingReport};

/// Runs `flanneld ping`.
pub(crate) fn run(arguments: Vec<OsString>, host: &Host) -> Result<ExitCode, FlagError> {
    let options = options::ping::parse(arguments, |variable| env::var_os(variable))?;
    let report = daemon::runtime().and_then(|runtime| runtime.block_on(ping(&options, &host.backends)));
    Ok(match report {
        Ok(report) => {
            let text = match (options.json, options.mesh) {
                (true, _) => crate::show::json(&report, false),
                (false, true) => show::map(&report, options.paint),
                (false, false) => show::table(&report, options.paint),
            };
            // A pager may close the pipe early.
            let _ = io::stdout().write_all(text.as_bytes());
            let is_bad = |verdict: ProbeVerdict| verdict.is_fault() || verdict == ProbeVerdict::Unknown;
            match report.peers.iter().any(|peer| is_bad(peer.probe.verdict)) {
                true => ExitCode::from(FAULT),
                false => ExitCode::SUCCESS,
            }
        }
        Err(reason) => {
            let _ = writeln!(io::stderr(), "{reason}");
            ExitCode::FAILURE
        }
    })
}

async fn ping(options: &PingOptions, backends: &BackendRegistry) -> Result<PingReport, String> {
    let (source, Site { own, peers }) = find_peers(options, backends).await?;
    let peers = select(peers, &options.peers)?;
    let peers = Site { own, peers }.probe(options.count, options.port).await;
    Ok(PingReport { source, peers })
}

/// Finds the peers: in the daemon's status, in its cache, or in etcd.
async fn find_peers(options: &PingOptions, backends: &BackendRegistry) -> Result<(PeerSource, Site), String> {
    let no_daemon = match &options.socket {
        Some(socket) => match client::status(socket) {
            Ok(report) => {
                let no_lease = "flanneld on this host has no lease yet, and so no peers".to_owned();
                return Ok((PeerSource::Daemon, Site::of_status(&report.network, backends).ok_or(no_lease)?));
            }
            Err(error) => crate::show::describe(&error),
        },
        None => "the status socket is off".to_owned(),
    };
    let no_cache = match CachedNetwork::read(&options.cache, &options.etcd.prefix) {
        Ok(Some(CachedNetwork { config, own, peers, .. })) => {
            return Ok((PeerSource::Cache, Site::of_leases(&config, backends, Some(&own), &peers)));
        }
        Ok(None) => format!("the cache {} does not exist", options.cache.display()),
        Err(error) => format!("the cache {} cannot be used: {error}", options.cache.display()),
    };
    match registry::read(&options.etcd, options.etcd_api).await {
        Ok(network) => {
            Ok((PeerSource::Registry, Site::of_leases(&network.config, backends, None, &network.leases)))
        }
        Err(no_registry) => Err(format!("nothing to ping: {no_daemon}; {no_cache}; {no_registry}")),
    }
}

/// Selects the named peers: by subnet, by an address in it, or by a public address.
fn select(peers: Vec<ProbeTarget>, names: &[String]) -> Result<Vec<ProbeTarget>, String> {
    if names.is_empty() {
        return Ok(peers);
    }
    let mut found = Vec::new();
    for name in names {
        let (net, address) = (name.parse::<IpNet>().ok(), name.parse::<IpAddr>().ok());
        if net.is_none() && address.is_none() {
            return Err(format!("{name:?} is neither an address nor a subnet"));
        }
        let is_named = |peer: &&ProbeTarget| {
            let by_net = net.is_some_and(|net| peer.subnet.nets().any(|other| other == net.trunc()));
            let by_address = address.is_some_and(|address| {
                peer.subnet.contains(address) || peer.public.addresses().any(|other| other == address)
            });
            by_net || by_address
        };
        let peer = peers
            .iter()
            .find(is_named)
            .ok_or_else(|| format!("no peer matches {name}; flanneld peers lists all"))?;
        if !found.contains(peer) {
            found.push(peer.clone());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
