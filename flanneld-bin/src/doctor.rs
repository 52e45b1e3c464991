//! `flanneld doctor`: finds faults of this host, whether or not the daemon runs, and prints their effects and cures.
//! Changes nothing.
//!
//! It takes the flags of the daemon. Without flags it uses those of the running daemon; if several run, `-subnet-file` alone
//! selects one.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use flannel_node::BackendRegistry;
use flannel_node::doctor::{AgentProfile, Finding, Severity, examine, gather, running_agents};
use tracing::error;

use crate::Host;
use crate::flags::FlagError;
use crate::format::Paint;
use crate::options::Options;
use crate::options::doctor::{DoctorOptions, parse};
use crate::plan::select_interface;
use crate::{daemon, log, options};

mod etcdctl;
mod registry;
mod show;

use registry::EtcdAgentRegistry;

/// The exit status if there are warnings but no errors.
pub(crate) const WARNINGS: u8 = 3;

/// Runs the subcommand.
pub(crate) fn run(arguments: Vec<OsString>, host: &Host) -> Result<ExitCode, FlagError> {
    let options = parse(arguments, |variable| env::var_os(variable))?;
    // By default only the findings are printed.
    if options.daemon.log.verbosity > 0 {
        log::start(&options.daemon.log);
    }
    Ok(report(&options, &host.backends))
}

fn report(options: &DoctorOptions, backends: &BackendRegistry) -> ExitCode {
    let findings = daemon::runtime().and_then(|runtime| runtime.block_on(examine_host(options, backends)));
    match findings {
        Ok(findings) => {
            let text = match options.json {
                true => show::json(&findings),
                false => show::text(&findings, Paint::automatic()),
            };
            // With standard output closed there is nowhere to report the failure.
            let _ = io::stdout().write_all(text.as_bytes());
            exit_code(&findings)
        }
        Err(reason) => {
            log::start(&options.daemon.log);
            error!("{reason}");
            ExitCode::FAILURE
        }
    }
}

async fn examine_host(options: &DoctorOptions, backends: &BackendRegistry) -> Result<Vec<Finding>, String> {
    let running = running_agents("flanneld", &|arguments, environment| match options::doctor::of_daemon(
        arguments,
        environment,
    ) {
        Ok(options) => Ok(options.as_ref().map(agent)),
        Err(error) => Err(error.to_string()),
    });
    let files = running.iter().map(|agent| Some(agent.options.as_ref().ok()?.subnet_file.as_path()));
    let chosen = options.choose(files).and_then(|at| running.get(at)?.options.as_ref().ok());
    let chosen = chosen.cloned().unwrap_or_else(|| agent(&options.daemon));
    let facts = gather(chosen, backends, running).await?;
    Ok(examine(&facts))
}

/// The options of a daemon, as the examination needs them.
fn agent(options: &Options) -> AgentProfile {
    let interfaces = options.interface_selector();
    AgentProfile {
        subnet_file: options.subnet_file.clone(),
        cache: options.beside_subnet_file(".cache"),
        node_id: options.beside_subnet_file(".node-id"),
        status_socket: options.observe.socket.clone(),
        rules: options.firewall.rules,
        restrict_tunnel_port: options.firewall.restrict_tunnel_port,
        external: Arc::new(move |config| select_interface(&interfaces, config)),
        registry: Arc::new(EtcdAgentRegistry { options: options.etcd.clone(), api: options.etcd_api }),
    }
}

fn exit_code(findings: &[Finding]) -> ExitCode {
    match findings.iter().map(|finding| finding.severity).max() {
        None => ExitCode::SUCCESS,
        Some(Severity::Warning) => ExitCode::from(WARNINGS),
        Some(Severity::Error) => ExitCode::FAILURE,
    }
}
