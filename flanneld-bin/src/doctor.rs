//! `flanneld doctor`: looks at a host, whether or not the daemon runs there, and says what is wrong, why it matters and
//! what cures it.
//!
//! ```text
//! flags ──▶ gather (reads kernel, files, registry) ──▶ Facts ──▶ checks (pure) ──▶ Findings ──▶ text or JSON
//! ```
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

use tracing::error;

use crate::flags::FlagError;
use crate::options::doctor::{DoctorOptions, parse};
use crate::show::format::Paint;
use crate::{daemon, log};
use finding::{Finding, Severity};

mod checks;
mod etcdctl;
mod facts;
mod finding;
mod gather;
mod show;

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
    let daemons = gather::daemons();
    let flags = options.choose(daemons.iter().map(|daemon| daemon.options.as_ref().ok())).clone();
    let facts = gather::read(flags, daemons).await?;
    Ok(checks::examine(&facts))
}

fn exit_code(findings: &[Finding]) -> ExitCode {
    match findings.iter().map(|finding| finding.severity).max() {
        None => ExitCode::SUCCESS,
        Some(Severity::Warning) => ExitCode::from(WARNINGS),
        Some(Severity::Error) => ExitCode::FAILURE,
    }
}
