//! `flanneld status` and `flanneld peers`: print the status of the daemon on this host.

mod peers;
mod status;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use flannel_node::client::{self, ClientError};
use flannel_node::status::AgentStatus;

use crate::Host;
use crate::flags::FlagError;
use crate::options;
use crate::options::show::ShowOptions;

/// The exit status if the daemon reports a fault.
pub(crate) const FAULT: u8 = 3;

/// Runs `flanneld status`.
pub(crate) fn status(arguments: Vec<OsString>, _: &Host) -> Result<ExitCode, FlagError> {
    let options = options::show::parse(arguments, |variable| env::var_os(variable))?;
    let request = |options: &ShowOptions| match options.json {
        true => client::status(&options.socket),
        // The text has only the number of peers.
        false => client::summary(&options.socket),
    };
    Ok(show(&options, request, |report| Page {
        text: if options.json { json(report, options.watch) } else { status::page(report, options.paint) },
        in_order: report.network.is_in_order(),
    }))
}

/// Runs `flanneld peers`.
pub(crate) fn peers(arguments: Vec<OsString>, _: &Host) -> Result<ExitCode, FlagError> {
    let options = options::show::parse(arguments, |variable| env::var_os(variable))?;
    Ok(show(
        &options,
        |options| client::status(&options.socket),
        |report| {
            let peers = report.network.peers.each.as_deref().unwrap_or_default();
            Page {
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

/// The output of one request.
struct Page {
    text: String,
    in_order: bool,
}

/// The interval of `-watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Clears the terminal and moves the cursor to its top left (ECMA-48).
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

fn show(
    options: &ShowOptions,
    request: impl Fn(&ShowOptions) -> Result<AgentStatus, ClientError>,
    format: impl Fn(&AgentStatus) -> Page,
) -> ExitCode {
    if !options.watch {
        return match request(options) {
            Ok(report) => {
                let Page { text, in_order } = format(&report);
                // A pager may close the pipe early.
                let _ = io::stdout().write_all(text.as_bytes());
                if in_order { ExitCode::SUCCESS } else { ExitCode::from(FAULT) }
            }
            Err(error) => {
                let _ = writeln!(io::stderr(), "{}", describe(&error));
                ExitCode::FAILURE
            }
        };
    }
    let clear = if io::stdout().is_terminal() && !options.json { CLEAR } else { "" };
    loop {
        let written = match request(options) {
            Ok(report) => write!(io::stdout(), "{clear}{}", format(&report).text),
            Err(error) if options.json => writeln!(io::stderr(), "{}", describe(&error)),
            Err(error) => writeln!(io::stdout(), "{clear}{}", describe(&error)),
        };
        if written.and_then(|()| io::stdout().flush()).is_err() {
            // The reader closed the pipe.
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

/// Describes why the daemon's status could not be read.
pub(crate) fn describe(error: &ClientError) -> String {
    match error {
        ClientError::NotRunning { .. } => {
            format!("no flanneld runs here: {error}; -subnet-file or -status-socket selects another daemon")
        }
        error @ (ClientError::Denied { .. } | ClientError::NoResponse { .. }) => error.to_string(),
    }
}

/// Formats a value as JSON: indented, or on one line.
pub(crate) fn json(value: &impl serde::Serialize, on_one_line: bool) -> String {
    let text = match on_one_line {
        true => serde_json::to_string(value),
        false => serde_json::to_string_pretty(value),
    };
    // String keys and plain data cannot fail.
    text.unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests;
