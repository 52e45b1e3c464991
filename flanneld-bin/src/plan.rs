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
use crate::format::plain;
use crate::options::Options;
use crate::options::plan::parse;
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
    let external = select_interface(&options.interface_selector(), Some(&network.config))?;
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
mod tests;
