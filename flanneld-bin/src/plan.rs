//! `flanneld plan`: prints the changes that the daemon would make to this host now. Writes nothing, neither to the host nor
//! to the registry.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use flannel_core::{ExternalInterface, NetworkConfig, PlannedAction, chain};
use flannel_dataplane::InterfaceSelector;
use flannel_netlink::Namespace;
use flannel_node::BackendRegistry;
use flannel_node::plan::{HostPlan, NetworkSnapshot, PlanSource, UnreachablePeer, host_plan, read_node_id};

use crate::Host;
use crate::daemon;
use crate::flags::FlagError;
use crate::options::Options;
use crate::options::plan::parse;
use crate::show::format::plain;
use crate::{event_log, registry};

/// The exit status if the daemon would change something.
pub(crate) const CHANGES: u8 = 3;

/// Runs the subcommand.
pub(crate) fn run(arguments: Vec<OsString>, host: &Host) -> Result<ExitCode, FlagError> {
    let options = parse(arguments, |variable| env::var_os(variable))?;
    let planned =
        daemon::runtime().and_then(|runtime| runtime.block_on(plan(&options.daemon, &host.backends)));
    Ok(match planned {
        Ok(plan) => {
            // A pager may close the pipe early.
            let output = if options.json { json(&plan) } else { text(&plan) };
            let _ = io::stdout().write_all(output.as_bytes());
            if plan.changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(CHANGES) }
        }
        Err(reason) => {
            let _ = writeln!(io::stderr(), "{reason}");
            ExitCode::FAILURE
        }
    })
}

async fn plan(options: &Options, backends: &BackendRegistry) -> Result<HostPlan, String> {
    let network = match read_registry(options).await {
        Ok(network) => network,
        Err(reason) => {
            NetworkSnapshot::from_cache(options.beside_subnet_file(".cache"), &options.etcd.prefix, reason)?
        }
    };
    let external = select_interface(&options.external, Some(&network.config))?;
    let public = external.public.used_by(&network.config);
    let node = read_node_id(&options.beside_subnet_file(".node-id")).ok().flatten();
    let own = network.own(&public, node).ok_or_else(|| {
        format!("this host ({public}) holds no lease; flanneld acquires one when it starts")
    })?;
    host_plan(backends, network, &external, &own).map_err(|error| chain(&error))
}

/// Returns the interface that a daemon would select, for any address family if the config is not known.
pub(crate) fn select_interface(
    selector: &InterfaceSelector,
    config: Option<&NetworkConfig>,
) -> Result<ExternalInterface, String> {
    let namespace =
        Namespace::current().map_err(|error| format!("Failed to open the network namespace: {error}"))?;
    let selected = match config {
        Some(config) => selector.select_for(&namespace, config.families()),
        None => selector.select(&namespace),
    };
    selected.map_err(|error| chain(&error))
}

async fn read_registry(options: &Options) -> Result<NetworkSnapshot, String> {
    let registry::RegistrySnapshot { name, config, leases } =
        registry::read(&options.etcd, options.etcd_api).await?;
    Ok(NetworkSnapshot { source: PlanSource::Registry { name }, config, leases, own: None })
}

fn json(plan: &HostPlan) -> String {
    crate::show::json(plan, false)
}

fn text(plan: &HostPlan) -> String {
    let source = match &plan.source {
        PlanSource::Registry { name } => name.clone(),
        PlanSource::Cache { file, reason } => format!("the cache {} ({reason})", file.display()),
    };
    let own = event_log::subnets(&plan.subnets);
    let mut text = format!("plan for {own} with {} peers, from {}\n", plan.peers, plain(&source));
    for change in &plan.changes {
        let sign = if change.action == PlannedAction::Remove { '-' } else { '+' };
        let instead =
            change.instead_of.as_ref().map_or_else(String::new, |object| format!(", instead of {object}"));
        text.push_str(&format!("{sign} {}\n", plain(&format!("{}{instead}", change.object))));
    }
    for UnreachablePeer { peer, reason } in &plan.unreachable {
        text.push_str(&format!("? peer {}: {}\n", event_log::subnets(peer), plain(reason)));
    }
    let removals = plan.changes.iter().filter(|change| change.action == PlannedAction::Remove).count();
    match (plan.changes.len() - removals, removals) {
        (0, 0) => text.push_str("nothing to change\n"),
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

    fn host_plan(changes: Vec<PlannedChange>) -> HostPlan {
        let subnet = "10.5.1.0-24".parse().expect("a key");
        let peer = "10.5.4.0-24".parse().expect("a key");
        HostPlan {
            source: PlanSource::Cache {
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
    fn the_text_has_a_line_for_each_change() {
        let expected = "plan for 10.5.1.0/24 with 3 peers, from the cache /run/flannel/subnet.env.cache (etcd is away)\n\
                        + route 10.5.2.0/24 via 10.5.2.0, instead of route 10.5.2.0/24 via 10.5.9.9\n\
                        + device flannel.1\n\
                        - neighbour 10.5.3.0 lladdr 0e:00:00:00:00:03\u{fffd}[2J\n\
                        ? peer 10.5.4.0/24: ignoring non-vxlan subnet\n\
                        2 would be written, 1 would be removed\n";
        assert_eq!(text(&host_plan(changes())), expected);
        assert!(text(&host_plan(Vec::new())).ends_with("nothing to change\n"));
    }

    /// Other programs rely on these members.
    #[test]
    fn the_json_of_a_plan_is_stable() {
        let written: serde_json::Value = serde_json::from_str(&json(&host_plan(changes()))).expect("json");
        let expected = serde_json::json!({
            "source": {"kind": "cache", "file": "/run/flannel/subnet.env.cache", "reason": "etcd is away"},
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
