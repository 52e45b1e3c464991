//! flanneld: the daemon that runs a flannel network on one host.

use std::env;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tracing::warn;

use flags::FlagError;
use options::{Command, Options};

mod backends;
mod blackhole;
mod capabilities;
mod daemon;
mod doctor;
mod facts;
mod firewall;
mod flags;
mod follow;
mod go_duration;
mod go_syntax;
mod iface;
mod log;
mod migrate;
mod notify;
mod options;
mod registry;
mod story;
mod subnet_env;
mod sys;

/// The exit status of a command line that cannot be used. Upstream exits 0, which a supervisor that
/// restarts on failure takes for a success.
const BAD_FLAGS: u8 = 2;

fn main() -> ExitCode {
    sys::keep_no_large_buffers();
    let mut arguments = env::args_os();
    let program = arguments.next().unwrap_or_else(|| "flanneld".into());
    let usage = || options::usage(&program.to_string_lossy());
    let arguments: Vec<_> = arguments.collect();
    if arguments.first().is_some_and(|word| word == "doctor") {
        return match doctor::options::parse(arguments[1..].to_vec(), |variable| env::var_os(variable)) {
            Ok(options) => doctor::run(options),
            Err(error) => print(&format!("{error}\n"), ExitCode::from(BAD_FLAGS)),
        };
    }
    match options::parse(arguments, |variable| env::var_os(variable)) {
        Ok(Command::Run(options)) => run(&options),
        Ok(Command::Migrate(options)) => migrate::run(&options),
        Ok(Command::MigrateHelp) => {
            print(&options::migrate_usage(&program.to_string_lossy()), ExitCode::SUCCESS)
        }
        Ok(Command::Help) => print(&usage(), ExitCode::SUCCESS),
        Ok(Command::Version) => print(&format!("v{}\n", env!("CARGO_PKG_VERSION")), ExitCode::SUCCESS),
        Err(FlagError::Refused(line)) => print(&format!("{line}\n"), ExitCode::from(BAD_FLAGS)),
        Err(error) => print(&format!("{error}\n{}", usage()), ExitCode::from(BAD_FLAGS)),
    }
}

/// Writes `text` to standard error, where upstream prints all it has to say, and passes `code` on.
fn print(text: &str, code: ExitCode) -> ExitCode {
    // A closed standard error leaves nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    code
}

/// Starts the log, says what the options leave to say, and runs the daemon.
fn run(options: &Options) -> ExitCode {
    log::start(options.verbosity);
    // A unit that passes a variable in braces passes an empty argument when it is not set.
    if options.ignored_arguments.iter().any(|argument| !argument.is_empty()) {
        warn!("ignoring the arguments after the end of the flags: {:?}", options.ignored_arguments);
    }
    daemon::run(options)
}
