//! `flanneld plan`: what a start of the daemon, or a pass of the one that runs, would write on this host now. Nothing is
//! written, neither here nor in the registry.
//!
//! | exit status | |
//! |---|---|
//! | 0 | nothing: the host is as it should be |
//! | 1 | it cannot be told: the line says why |
//! | 2 | wrong flags |
//! | 3 | what is shown |

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use flannel_core::{
    ExternalInterface, Lease, LeaseChange, NetworkConfig, NodeId, OpenBackend as _, PeerSet, Plan,
    PlanRequest, PlannedAction, PlannedChange, SubnetKey, chain,
};
use flannel_netlink::Namespace;
use flannel_registry::CachedNetwork;
use serde::Serialize;

use crate::backends::Backends;
use crate::daemon;
use crate::flags::FlagError;
use crate::options::Options;
use crate::options::plan::parse;
use crate::show::format::plain;
use crate::{event_log, external, registry};

/// The exit status when something would be written.
pub(crate) const SOMETHING: u8 = 3;

/// Runs the command.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let options = parse(arguments, |variable| env::var_os(variable))?;
    let looked = daemon::runtime().and_then(|runtime| runtime.block_on(look(&options.daemon)));
    Ok(match looked {
        Ok(found) => {
            // Whoever closes it early, such as a pager, has seen enough.
            let shown = if options.json { json(&found) } else { text(&found) };
            let _ = io::stdout().write_all(shown.as_bytes());
            if found.changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(SOMETHING) }
        }
        Err(reason) => {
            let _ = writeln!(io::stderr(), "{reason}");
            ExitCode::FAILURE
        }
    })
}

/// What was found, as programs read it.
#[derive(Debug, Serialize)]
struct Found {
    /// Where lease and peers were learnt.
    source: Source,
    /// The host's lease.
    subnets: SubnetKey,
    /// How many other hosts there are.
    peers: usize,
    /// What would be written, in this order.
    changes: Vec<PlannedChange>,
    /// Which peers would not be reached.
    unreachable: Vec<Unreachable>,
}

/// Where lease and peers were learnt.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Source {
    /// From the registry.
    Registry {
        /// Which one.
        name: String,
    },
    /// From what was remembered of the last run.
    Memory {
        /// The file.
        file: PathBuf,
        /// Why not from the registry.
        reason: String,
    },
}

#[derive(Debug, Serialize)]
struct Unreachable {
    #[serde(rename = "subnets")]
    peer: SubnetKey,
    reason: String,
}

/// What is known of the network.
struct Known {
    source: Source,
    config: NetworkConfig,
    leases: Vec<Arc<Lease>>,
    /// The host's own, if that is known already.
    own: Option<Lease>,
}

async fn look(options: &Options) -> Result<Found, String> {
    let known = match ask(options).await {
        Ok(known) => known,
        Err(reason) => remember(options, reason)?,
    };
    let external = external::look(&options.external, Some(&known.config))?;
    let own = own(options, &known, &external)?;
    // What is remembered is no reason to remove anything.
    let peers = peers(known.leases, &own, matches!(known.source, Source::Registry { .. }));
    let namespace = Namespace::current().map_err(|error| format!("Failed to open the namespace: {error}"))?;
    let request = PlanRequest::new(&known.config, &external, &own, &peers);
    let Plan { changes, unreachable, .. } =
        Backends::new(namespace, None).plan(request).map_err(|error| chain(&error))?;
    let unreachable =
        unreachable.into_iter().map(|failure| Unreachable { peer: failure.peer, reason: failure.reason });
    Ok(Found {
        source: known.source,
        subnets: own.subnet,
        peers: peers.len(),
        changes,
        unreachable: unreachable.collect(),
    })
}

/// All others who have a lease; complete if nobody may be missing.
pub(crate) fn peers(
    leases: impl IntoIterator<Item = Arc<Lease>>,
    own: &Lease,
    are_complete: bool,
) -> PeerSet {
    let mut peers = PeerSet::default();
    let others = leases.into_iter().filter(|lease| lease.subnet != own.subnet);
    peers.extend(others.map(LeaseChange::Put));
    if are_complete {
        peers.complete();
    }
    peers
}

/// Asks the registry, which is only read.
async fn ask(options: &Options) -> Result<Known, String> {
    let registry::Known { name, config, leases } = registry::read(&options.etcd, options.etcd_api).await?;
    Ok(Known { source: Source::Registry { name }, config, leases, own: None })
}

/// Reads what was remembered of the last run, when the registry cannot be asked.
fn remember(options: &Options, reason: String) -> Result<Known, String> {
    let file = options.beside_subnet_file(".cache");
    let nothing = |why: &str| format!("{reason}, and {why}");
    match CachedNetwork::read(&file, &options.etcd.prefix) {
        Ok(Some(CachedNetwork { config, own, peers, .. })) => {
            let source = Source::Memory { file, reason };
            Ok(Known { source, config, leases: peers, own: Some(own) })
        }
        Ok(None) => Err(nothing(&format!("nothing is remembered in {}", file.display()))),
        Err(error) => Err(nothing(&format!("{} cannot be used: {error}", file.display()))),
    }
}

/// Finds the lease that this host holds.
fn own(options: &Options, known: &Known, external: &ExternalInterface) -> Result<Lease, String> {
    if let Some(own) = &known.own {
        return Ok(own.clone());
    }
    let public = external.public.used_by(&known.config);
    let own = registry::own_lease(&known.leases, &public, node_id(options));
    own.map(|lease| Lease::clone(lease)).ok_or_else(|| {
        format!("this host, at {public}, holds no lease: a flanneld that starts here takes one first")
    })
}

/// The id of this host, if it has one.
pub(crate) fn node_id(options: &Options) -> Option<NodeId> {
    let file = options.beside_subnet_file(".node-id");
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok())
}

fn json(found: &Found) -> String {
    crate::show::json(found, false)
}

fn text(found: &Found) -> String {
    let from = match &found.source {
        Source::Registry { name } => name.clone(),
        Source::Memory { file, reason } => format!("the memory in {}, because {reason}", file.display()),
    };
    let own = event_log::subnets(&found.subnets);
    let mut text = format!("for {own} and {} peers, as {} says\n", found.peers, plain(&from));
    for change in &found.changes {
        let sign = if change.action == PlannedAction::Remove { '-' } else { '+' };
        let instead = change.instead_of.as_ref().map_or_else(String::new, |it| format!(", instead of {it}"));
        text.push_str(&format!("{sign} {}\n", plain(&format!("{}{instead}", change.object))));
    }
    for Unreachable { peer, reason } in &found.unreachable {
        text.push_str(&format!("? peer {}: {}\n", event_log::subnets(peer), plain(reason)));
    }
    let removals = found.changes.iter().filter(|change| change.action == PlannedAction::Remove).count();
    match (found.changes.len() - removals, removals) {
        (0, 0) => text.push_str("nothing to do: this host is as it should be\n"),
        (puts, removals) => {
            text.push_str(&format!("{puts} would be written, {removals} would be removed\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(changes: Vec<PlannedChange>) -> Found {
        let subnet = "10.5.1.0-24".parse().expect("a key");
        let peer = "10.5.4.0-24".parse().expect("a key");
        Found {
            source: Source::Memory {
                file: "/run/flannel/subnet.env.cache".into(),
                reason: "etcd is away".to_owned(),
            },
            subnets: subnet,
            peers: 3,
            changes,
            unreachable: vec![Unreachable { peer, reason: "ignoring non-vxlan subnet".to_owned() }],
        }
    }

    fn changes() -> Vec<PlannedChange> {
        let route = "route 10.5.2.0/24 via 10.5.2.0";
        vec![
            PlannedChange::put(route, Some("route 10.5.2.0/24 via 10.5.9.9".to_owned())),
            PlannedChange::put("device flannel.1", None),
            PlannedChange::remove("neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{1b}[2J"),
        ]
    }

    #[test]
    fn people_see_a_line_for_each_write() {
        let expected = "for 10.5.1.0/24 and 3 peers, as the memory in /run/flannel/subnet.env.cache, because etcd is away \
                        says\n\
                        + route 10.5.2.0/24 via 10.5.2.0, instead of route 10.5.2.0/24 via 10.5.9.9\n\
                        + device flannel.1\n\
                        - neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{fffd}[2J\n\
                        ? peer 10.5.4.0/24: ignoring non-vxlan subnet\n\
                        2 would be written, 1 would be removed\n";
        assert_eq!(text(&found(changes())), expected);
        assert!(text(&found(Vec::new())).ends_with("nothing to do: this host is as it should be\n"));
    }

    /// The members that change here break other programs.
    #[test]
    fn the_json_of_a_plan_is_what_other_programs_rely_on() {
        let written: serde_json::Value = serde_json::from_str(&json(&found(changes()))).expect("json");
        let expected = serde_json::json!({
            "source": {"kind": "memory", "file": "/run/flannel/subnet.env.cache", "reason": "etcd is away"},
            "subnets": ["10.5.1.0/24"],
            "peers": 3,
            "changes": [
                {
                    "action": "put",
                    "object": "route 10.5.2.0/24 via 10.5.2.0",
                    "instead_of": "route 10.5.2.0/24 via 10.5.9.9",
                },
                {"action": "put", "object": "device flannel.1", "instead_of": null},
                {
                    "action": "remove",
                    "object": "neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{1b}[2J",
                    "instead_of": null,
                },
            ],
            "unreachable": [{"subnets": ["10.5.4.0/24"], "reason": "ignoring non-vxlan subnet"}],
        });
        assert_eq!(written, expected);
        let registry = Source::Registry { name: "etcd".to_owned() };
        let written = serde_json::to_value(registry).expect("json");
        assert_eq!(written, serde_json::json!({"kind": "registry", "name": "etcd"}));
    }
}
