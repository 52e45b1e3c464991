//! `flanneld`, the daemon that runs a flannel network on one host, as a library: command line, environment, log and
//! subcommands around [`flannel-node`](https://docs.rs/flannel-node).
//!
//! The program is [`run`]. [`reference`] describes its flags and subcommands.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tracing::warn;

use flags::{FlagError, IgnoredArguments};
use options::{Options, Request};

mod daemon;
mod doctor;
mod event_log;
mod firewall;
mod flags;
mod go_duration;
mod go_syntax;
mod log;
mod migrate;
mod options;
mod ping;
mod plan;
pub mod reference;
mod registry;
mod show;
mod subcommands;
mod sys;

/// The exit status for an invalid command line. Upstream exits with 0, which a supervisor that restarts on failure takes
/// for success.
const INVALID_COMMAND_LINE: u8 = 2;

/// Runs `flanneld` with the arguments of its process, of which the first is the program's name, and the environment.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    sys::keep_no_large_buffers();
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_else(|| "flanneld".into());
    let program = program.to_string_lossy();
    let mut arguments: Vec<OsString> = arguments.collect();
    let Some(command) = arguments.first().and_then(|name| subcommands::find(name)) else {
        let usage = || format!("{}{}", options::usage(&program), subcommands::usage(&program));
        return daemon(arguments).unwrap_or_else(|error| print_flag_error(&error, usage));
    };
    let usage = || flags::usage(&format!("{program} {}", command.name), &(command.flags)());
    (command.run)(arguments.split_off(1)).unwrap_or_else(|error| print_flag_error(&error, usage))
}

/// Runs the daemon, or prints its version.
fn daemon(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    Ok(match options::parse(arguments, |variable| env::var_os(variable))? {
        Request::Run(options) => {
            log::start(&options.log);
            warn_of_ignored_arguments(&options);
            daemon::run(&options)
        }
        Request::Version => print(&format!("v{}\n", env!("CARGO_PKG_VERSION")), ExitCode::SUCCESS),
    })
}

fn warn_of_ignored_arguments(options: &Options) {
    let IgnoredArguments { count, flags } = &options.ignored;
    if *count > 0 {
        let names: Vec<String> = flags.iter().map(|name| format!("-{name}")).collect();
        let including =
            if names.is_empty() { String::new() } else { format!(", including {}", names.join(", ")) };
        warn!(
            "{count} arguments after the last flag are ignored{including}; a boolean flag takes its value after an \
             equals sign"
        );
    }
}

/// Prints why the command line is invalid, with the usage text if that helps.
fn print_flag_error(error: &FlagError, usage: impl Fn() -> String) -> ExitCode {
    match error {
        FlagError::Help => print(&usage(), ExitCode::SUCCESS),
        FlagError::InvalidValue(line) => print(&format!("{line}\n"), ExitCode::from(INVALID_COMMAND_LINE)),
        FlagError::Syntax(line) => {
            print(&format!("{line}\n{}", usage()), ExitCode::from(INVALID_COMMAND_LINE))
        }
    }
}

/// Writes `text` to standard error, as upstream does, and returns `code`.
fn print(text: &str, code: ExitCode) -> ExitCode {
    // With standard error closed there is nowhere to report the failure.
    let _ = io::stderr().write_all(text.as_bytes());
    code
}
