//! `flanneld doctor`: looks at a host, whether or not the daemon runs there, and says what is wrong, why it matters and
//! what cures it.
//!
//! It takes the flags of the daemon, so that it looks where the daemon does. Without any, it takes those that the daemon
//! was started with that runs here; where several run, `-subnet-file` alone says which one is meant. It changes nothing.
//!
//! | exit status | |
//! |---|---|
//! | 0 | nothing is wrong |
//! | 1 | something is broken, or the host cannot be looked at |
//! | 2 | wrong flags |
//! | 3 | nothing is broken yet, and something should be looked after |

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use flannel_core::{ExternalInterface, NetworkConfig, chain};
use flannel_dataplane::InterfaceSelector;
use flannel_netlink::Namespace;
use flannel_node::doctor::{AgentOptions, Finding, Severity, examine, gather, running_agents};
use tracing::error;

use crate::flags::FlagError;
use crate::options::Options;
use crate::options::doctor::{DoctorOptions, parse};
use crate::show::format::Paint;
use crate::{daemon, log, options};

mod etcdctl;
mod registry;
mod show;

use registry::EtcdOfDaemon;

/// The exit status when the worst that was found is a warning.
pub(crate) const WARNINGS: u8 = 3;

/// Looks, and says what was found.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let options = parse(arguments, |variable| env::var_os(variable))?;
    // What the daemon would log while it looks is for who asks for it.
    if options.daemon.log.verbosity > 0 {
        log::start(&options.daemon.log);
    }
    Ok(report(&options))
}

fn report(options: &DoctorOptions) -> ExitCode {
    let found = daemon::runtime().and_then(|runtime| runtime.block_on(look(options)));
    match found {
        Ok(findings) => {
            let text = match options.json {
                true => show::json(&findings),
                false => show::text(&findings, Paint::where_it_shows()),
            };
            // A closed standard output leaves nobody to tell.
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

async fn look(options: &DoctorOptions) -> Result<Vec<Finding>, String> {
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
    let facts = gather(chosen, running).await?;
    Ok(examine(&facts))
}

/// What doctor needs to know of a daemon with these options.
fn agent(options: &Options) -> AgentOptions {
    let interfaces = options.external.clone();
    AgentOptions {
        subnet_file: options.subnet_file.clone(),
        cache: options.beside_subnet_file(".cache"),
        node_id: options.beside_subnet_file(".node-id"),
        status_socket: options.observe.socket.clone(),
        rules: options.firewall.rules,
        restrict_tunnel_port: options.firewall.restrict_tunnel_port,
        external: Arc::new(move |config| external(&interfaces, config)),
        registry: Arc::new(EtcdOfDaemon { options: options.etcd.clone(), api: options.etcd_api }),
    }
}

/// Returns the interface that a daemon would select, for any family if its configuration is not known.
fn external(
    selector: &InterfaceSelector,
    config: Option<&NetworkConfig>,
) -> Result<ExternalInterface, String> {
    let namespace = Namespace::current().map_err(|error| format!("Failed to open the namespace: {error}"))?;
    let selected = match config {
        Some(config) => selector.select_for(&namespace, config.families()),
        None => selector.select(&namespace),
    };
    selected.map_err(|error| chain(&error))
}

fn exit_code(findings: &[Finding]) -> ExitCode {
    match findings.iter().map(|finding| finding.severity).max() {
        None => ExitCode::SUCCESS,
        Some(Severity::Warning) => ExitCode::from(WARNINGS),
        Some(Severity::Error) => ExitCode::FAILURE,
    }
}
