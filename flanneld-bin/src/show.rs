//! `flanneld status` and `flanneld peers`: what the daemon on this host says of itself, for people and programs.
//!
//! | exit status | |
//! |---|---|
//! | 0 | it runs, and all is in order: for `status` lease, peers and kernel, for `peers` the way to each of them |
//! | 1 | no daemon runs here, or it does not answer |
//! | 2 | wrong flags |
//! | 3 | it runs, and something is not in order; what, is shown |

pub(crate) mod format;
mod peers;
mod status;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use flannel_node::client::{self, ClientError};
use flannel_node::status::AgentStatus;

use crate::flags::FlagError;
use crate::options;
use crate::options::show::ShowOptions;
use format::Paint;

/// The exit status when something is not in order.
pub(crate) const NOT_IN_ORDER: u8 = 3;

/// Reads whether to colour what goes to standard output.
pub(crate) fn paint(color: &str) -> Result<Paint, String> {
    match color {
        "auto" => Ok(Paint::where_it_shows()),
        "always" => Ok(Paint(true)),
        "never" => Ok(Paint(false)),
        other => Err(format!("{other:?} is none of auto, always and never")),
    }
}

/// Runs `flanneld status`.
pub(crate) fn status(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let options = options::show::parse(arguments, |variable| env::var_os(variable))?;
    let ask = |options: &ShowOptions| match options.json {
        true => client::status(&options.socket),
        // People see numbers of peers; `flanneld peers` shows each.
        false => client::summary(&options.socket),
    };
    Ok(show(&options, ask, |report| Shown {
        text: if options.json { json(report, options.watch) } else { status::page(report, options.paint) },
        in_order: report.network.is_in_order(),
    }))
}

/// Runs `flanneld peers`.
pub(crate) fn peers(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let options = options::show::parse(arguments, |variable| env::var_os(variable))?;
    Ok(show(
        &options,
        |options| client::status(&options.socket),
        |report| {
            let peers = report.network.peers.each.as_deref().unwrap_or_default();
            Shown {
                text: if options.json {
                    json(&peers, options.watch)
                } else {
                    peers::page(peers, options.paint)
                },
                in_order: report.network.peers.programmed == report.network.peers.known,
            }
        },
    ))
}

/// What is shown once.
struct Shown {
    text: String,
    in_order: bool,
}

/// How often it is shown again.
const AGAIN: Duration = Duration::from_secs(2);

/// Clears a terminal, and goes to its first place (ECMA-48).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

fn show(
    options: &ShowOptions,
    ask: impl Fn(&ShowOptions) -> Result<AgentStatus, ClientError>,
    make: impl Fn(&AgentStatus) -> Shown,
) -> ExitCode {
    if !options.watch {
        return match ask(options) {
            Ok(report) => {
                let Shown { text, in_order } = make(&report);
                // Whoever closes it early, such as a pager, has seen enough.
                let _ = io::stdout().write_all(text.as_bytes());
                if in_order { ExitCode::SUCCESS } else { ExitCode::from(NOT_IN_ORDER) }
            }
            Err(error) => {
                let _ = writeln!(io::stderr(), "{error}");
                ExitCode::FAILURE
            }
        };
    }
    let clear = if io::stdout().is_terminal() && !options.json { CLEAR } else { "" };
    loop {
        let written = match ask(options) {
            Ok(report) => write!(io::stdout(), "{clear}{}", make(&report).text),
            Err(error) if options.json => writeln!(io::stderr(), "{error}"),
            Err(error) => writeln!(io::stdout(), "{clear}{error}"),
        };
        if written.and_then(|()| io::stdout().flush()).is_err() {
            // Nobody looks any more.
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(AGAIN);
    }
}

/// Writes a value for programs: for people to read as well, or on one line.
pub(crate) fn json(value: &impl serde::Serialize, on_one_line: bool) -> String {
    let text = match on_one_line {
        true => serde_json::to_string(value),
        false => serde_json::to_string_pretty(value),
    };
    // All keys are text, and nothing in it fails to be written.
    text.unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests;
