//! flanneld: the daemon that runs a flannel network on one host.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tracing::warn;

use flags::{FlagError, Ignored};
use options::{Asked, Options};

mod daemon;
mod doctor;
mod firewall;
mod flags;
mod go_duration;
mod go_syntax;
mod log;
mod manual;
mod migrate;
mod options;
mod ping;
mod plan;
mod registry;
mod show;
mod story;
mod subcommands;
mod sys;

/// The exit status of a command line that cannot be used. Upstream exits 0, which a supervisor that
/// restarts on failure takes for a success.
const BAD_FLAGS: u8 = 2;

fn main() -> ExitCode {
    sys::keep_no_large_buffers();
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_else(|| "flanneld".into());
    let program = program.to_string_lossy();
    let mut arguments: Vec<OsString> = arguments.collect();
    let Some(command) = arguments.first().and_then(|word| subcommands::named(word)) else {
        let usage = || format!("{}{}", options::usage(&program), subcommands::usage(&program));
        return daemon(arguments).unwrap_or_else(|error| refuse(&error, usage));
    };
    let usage = || flags::usage(&format!("{program} {}", command.name), &(command.flags)());
    (command.run)(arguments.split_off(1)).unwrap_or_else(|error| refuse(&error, usage))
}

/// Runs the daemon, or tells its version.
fn daemon(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    Ok(match options::parse(arguments, |variable| env::var_os(variable))? {
        Asked::Run(options) => run(&options),
        Asked::Version => print(&format!("v{}\n", env!("CARGO_PKG_VERSION")), ExitCode::SUCCESS),
    })
}

/// Starts the log, says what the options leave to say, and runs the daemon.
fn run(options: &Options) -> ExitCode {
    log::start(&options.log);
    let Ignored { count, flags } = &options.ignored;
    if *count > 0 {
        let names: Vec<String> = flags.iter().map(|name| format!("-{name}")).collect();
        let among =
            if names.is_empty() { String::new() } else { format!(", among them {}", names.join(", ")) };
        warn!(
            "ignoring arguments behind the end of the flags: {count}{among}; a flag that is true or false takes its \
             value with an equals sign only"
        );
    }
    daemon::run(options)
}

/// Tells why a command line cannot be used; `usage` is what helps.
fn refuse(error: &FlagError, usage: impl Fn() -> String) -> ExitCode {
    match error {
        FlagError::Help => print(&usage(), ExitCode::SUCCESS),
        FlagError::Refused(line) => print(&format!("{line}\n"), ExitCode::from(BAD_FLAGS)),
        FlagError::Syntax(line) => print(&format!("{line}\n{}", usage()), ExitCode::from(BAD_FLAGS)),
    }
}

/// Writes `text` to standard error, where upstream prints all it has to say, and passes `code` on.
fn print(text: &str, code: ExitCode) -> ExitCode {
    // A closed standard error leaves nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    code
}
