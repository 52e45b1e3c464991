//! The CNI plugin of flannel: attaches containers to the subnet that their host leases.
//!
//! The plugin is a meta plugin. It reads `subnet.env`, which flanneld writes, derives the configuration of another plugin
//! (the *delegate*, `bridge` by default) from it, and runs the delegate. Interface and error codes follow version 1.1 of
//! the [CNI specification](https://www.cni.dev/docs/spec/).
//!
//! Container runtimes run the program `flannel`, which is [`run_from_environment`]. A runtime or test that links the
//! plugin calls [`run`] with [`Parameters`] of its own instead. The calling thread's network namespace is the host's: the
//! delegate inherits it.
//!
//! ```
//! use flannel_cni::{NetConf, Parameters};
//!
//! let input = br#"{"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"}"#;
//! let conf = NetConf::parse(input)?;
//! assert_eq!(conf.name(), "cbr0");
//! assert_eq!(conf.files()?.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
//!
//! let parameters = Parameters { command: "VERSION".to_owned(), ..Parameters::default() };
//! let answer = flannel_cni::run(&parameters, std::io::empty())?;
//! assert!(answer.starts_with(br#"{"cniVersion":"1.1.0""#));
//! # Ok::<(), flannel_cni::CniError>(())
//! ```

use std::env;
use std::io::{self, Read, Write as _};
use std::process::ExitCode;

mod delegate;
mod error;
mod netconf;
mod operation;
mod parameters;
mod plugin;
mod state;
mod subnet_env;
mod version;

pub use error::{CniError, ERROR_CODES};
pub use netconf::{Files, MEMBERS, NetConf};
pub use parameters::{Operation, Parameters};
pub use version::SUPPORTED_VERSIONS;

/// Runs the plugin as a program: parameters from the environment, configuration from standard input, the result or the
/// error object to standard output.
///
/// Without `CNI_COMMAND` it prints the version of the plugin and of the protocol to standard error.
pub fn run_from_environment() -> ExitCode {
    let parameters = Parameters::from_lookup(|name| env::var_os(name));
    if parameters.command.is_empty() {
        let about = format!(
            "CNI Plugin flannel version v{} ({}/{})\nCNI protocol versions supported: {}\n",
            env!("CARGO_PKG_VERSION"),
            env::consts::OS,
            env::consts::ARCH,
            SUPPORTED_VERSIONS.join(", ")
        );
        return exit_code(io::stderr().write_all(about.as_bytes()), ExitCode::SUCCESS);
    }
    match run(&parameters, io::stdin()) {
        Ok(text) => exit_code(io::stdout().write_all(&text), ExitCode::SUCCESS),
        Err(error) => exit_code(io::stdout().write_all(error.to_json().as_bytes()), ExitCode::FAILURE),
    }
}

/// Runs one operation of the protocol and returns what the plugin prints on success, which is empty for all but `ADD` and
/// `VERSION`.
///
/// `input` is the network configuration; `VERSION` does not read it. What the delegate writes to its standard error is
/// copied to that of this process.
///
/// # Errors
/// Returns the error object that the runtime is to be shown: of this plugin, or as the delegate printed it.
pub fn run(parameters: &Parameters, mut input: impl Read) -> Result<Vec<u8>, CniError> {
    parameters.check()?;
    if parameters.command == "VERSION" {
        return Ok(version::report().into_bytes());
    }
    let mut text = Vec::new();
    input
        .read_to_end(&mut text)
        .map_err(|error| CniError::io(format!("error reading from stdin: {error}")))?;
    let conf = NetConf::parse(&text)?;
    let operation = Operation::from_name(&parameters.command)?;
    version::check(conf.version(), operation)?;
    operation::run(operation, parameters, &conf)
}

/// A closed standard output is a failure.
fn exit_code(written: io::Result<()>, code: ExitCode) -> ExitCode {
    if written.is_ok() { code } else { ExitCode::FAILURE }
}
