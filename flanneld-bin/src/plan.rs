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
use std::io::{self, Write as _};
use std::process::ExitCode;

use flannel_core::{PlannedAction, chain};
use flannel_netlink::Namespace;
use flannel_node::backends::Backends;
use flannel_node::plan::{HostPlan, NetworkSnapshot, PlanSource, UnreachablePeer, host_plan, read_node_id};

use crate::daemon;
use crate::flags::FlagError;
use crate::options::Options;
use crate::options::plan::parse;
use crate::show::format::plain;
use crate::{event_log, registry};

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

async fn look(options: &Options) -> Result<HostPlan, String> {
    let network = match ask(options).await {
        Ok(network) => network,
        Err(reason) => {
            NetworkSnapshot::from_cache(options.beside_subnet_file(".cache"), &options.etcd.prefix, reason)?
        }
    };
    let namespace = Namespace::current().map_err(|error| format!("Failed to open the namespace: {error}"))?;
    let external = options.external.select_for(&namespace, network.config.families());
    let external = external.map_err(|error| chain(&error))?;
    let public = external.public.used_by(&network.config);
    let node = read_node_id(&options.beside_subnet_file(".node-id")).ok().flatten();
    let own = network.own(&public, node).ok_or_else(|| {
        format!("this host, at {public}, holds no lease: a flanneld that starts here takes one first")
    })?;
    host_plan(&Backends::new(namespace, None), network, &external, &own).map_err(|error| chain(&error))
}

/// Asks the registry, which is only read.
async fn ask(options: &Options) -> Result<NetworkSnapshot, String> {
    let registry::Known { name, config, leases } = registry::read(&options.etcd, options.etcd_api).await?;
    Ok(NetworkSnapshot { source: PlanSource::Registry { name }, config, leases, own: None })
}

fn json(found: &HostPlan) -> String {
    crate::show::json(found, false)
}

fn text(found: &HostPlan) -> String {
    let from = match &found.source {
        PlanSource::Registry { name } => name.clone(),
        PlanSource::Memory { file, reason } => format!("the memory in {}, because {reason}", file.display()),
    };
    let own = event_log::subnets(&found.subnets);
    let mut text = format!("for {own} and {} peers, as {} says\n", found.peers, plain(&from));
    for change in &found.changes {
        let sign = if change.action == PlannedAction::Remove { '-' } else { '+' };
        let instead = change.instead_of.as_ref().map_or_else(String::new, |it| format!(", instead of {it}"));
        text.push_str(&format!("{sign} {}\n", plain(&format!("{}{instead}", change.object))));
    }
    for UnreachablePeer { peer, reason } in &found.unreachable {
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
    use flannel_core::PlannedChange;

    use super::*;

    fn found(changes: Vec<PlannedChange>) -> HostPlan {
        let subnet = "10.5.1.0-24".parse().expect("a key");
        let peer = "10.5.4.0-24".parse().expect("a key");
        HostPlan {
            source: PlanSource::Memory {
                file: "/run/flannel/subnet.env.cache".into(),
                reason: "etcd is away".to_owned(),
            },
            subnets: subnet,
            peers: 3,
            changes,
            unreachable: vec![UnreachablePeer { peer, reason: "ignoring non-vxlan subnet".to_owned() }],
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
        let registry = PlanSource::Registry { name: "etcd".to_owned() };
        let written = serde_json::to_value(registry).expect("json");
        assert_eq!(written, serde_json::json!({"kind": "registry", "name": "etcd"}));
    }
}
