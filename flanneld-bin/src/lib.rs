//! `flanneld`, the daemon that runs a flannel network on one host, as a library: command line, environment, log and
//! subcommands around [`flannel-node`](https://docs.rs/flannel-node).
//!
//! [`run`] is the program; [`mod@reference`] describes its flags and subcommands.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use flannel_netlink::Namespace;
use flannel_node::BackendRegistry;
use flannel_node::service_manager::{PassedDescriptors, passed_descriptors};
use tracing::warn;

use flags::{FlagError, IgnoredArguments};
use options::{Options, Request};

pub use backends::backends;

mod backends;
mod daemon;
mod doctor;
mod event_log;
mod flags;
mod format;
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

/// The process in which the program runs.
pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) backends: BackendRegistry,
    /// The descriptors that the service manager passed.
    pub(crate) descriptors: PassedDescriptors,
}

/// Runs `flanneld` with the arguments and environment of its process.
/// `backends` registers the backends of the program in the process's network namespace.
///
/// A program with one more backend:
///
/// ```no_run
/// # use flannel_core::{Backend, BackendDescriptor, BackendError, OpenBackend, OpenRequest};
/// # struct OpenGre;
/// # impl OpenBackend for OpenGre {
/// #     fn open(&self, _: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
/// #         Err(BackendError::Host("the kernel lacks GRE".to_owned()))
/// #     }
/// # }
/// # impl BackendDescriptor for OpenGre {
/// #     fn name(&self) -> &'static str {
/// #         "gre"
/// #     }
/// # }
/// fn main() -> std::process::ExitCode {
///     flanneld::run(std::env::args_os(), |namespace| flanneld::backends(namespace).with(OpenGre))
/// }
/// ```
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    backends: impl FnOnce(&Namespace) -> BackendRegistry,
) -> ExitCode {
    sys::configure_allocator();
    // Before anything is opened: the descriptors are known by their numbers.
    let descriptors = passed_descriptors(std::process::id(), |variable| env::var_os(variable));
    let host = match Namespace::current() {
        Ok(namespace) => Host { backends: backends(&namespace), namespace, descriptors },
        Err(error) => {
            return print(&format!("Failed to open the network namespace: {error}\n"), ExitCode::FAILURE);
        }
    };
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_else(|| "flanneld".into());
    let program = program.to_string_lossy();
    let mut arguments: Vec<OsString> = arguments.collect();
    let Some(command) = arguments.first().and_then(|name| subcommands::find(name)) else {
        let names: Vec<_> = host.backends.names().collect();
        let names = format!("Backends of the network config: {}\n", names.join(", "));
        let usage = || format!("{}{}{names}", options::usage(&program), subcommands::usage(&program));
        return daemon(arguments, host).unwrap_or_else(|error| print_flag_error(&error, usage));
    };
    let usage = || flags::usage(&format!("{program} {}", command.name), &(command.flags)());
    (command.run)(arguments.split_off(1), &host).unwrap_or_else(|error| print_flag_error(&error, usage))
}

/// Runs the daemon, or prints its version.
fn daemon(arguments: Vec<OsString>, host: Host) -> Result<ExitCode, FlagError> {
    Ok(match options::parse(arguments, |variable| env::var_os(variable))? {
        Request::Run(options) => {
            log::start(&options.log);
            warn_of_ignored_arguments(&options);
            daemon::run(&options, host)
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
