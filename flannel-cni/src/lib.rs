//! `flannel`, the CNI plugin: gives containers a place in the subnet of their host.
//!
//! It is a meta plugin. It reads what flanneld wrote about the host's lease, makes of it the configuration of another
//! plugin (`bridge`, unless told otherwise) and runs that one. Interface and codes are those of the CNI specification
//! 1.1 (<https://www.cni.dev/docs/spec/>).

use std::env;
use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

mod delegate;
mod error;
mod netconf;
mod plugin;
mod request;
mod state;
mod subnet_env;
mod verbs;
mod version;

use error::CniError;
use request::{Parameters, Verb};

fn main() -> ExitCode {
    let parameters = Parameters::from_lookup(|name| env::var_os(name));
    if parameters.command.is_empty() {
        let about = format!(
            "CNI Plugin flannel version v{} ({}/{})\nCNI protocol versions supported: {}\n",
            env!("CARGO_PKG_VERSION"),
            env::consts::OS,
            env::consts::ARCH,
            version::SUPPORTED.join(", ")
        );
        return ended(io::stderr().write_all(about.as_bytes()), ExitCode::SUCCESS);
    }
    match answer(&parameters) {
        Ok(text) => ended(io::stdout().write_all(&text), ExitCode::SUCCESS),
        Err(error) => ended(io::stdout().write_all(error.to_json().as_bytes()), ExitCode::FAILURE),
    }
}

/// Does what is asked for and returns what belongs on standard output.
fn answer(parameters: &Parameters) -> Result<Vec<u8>, CniError> {
    parameters.check()?;
    if parameters.command == "VERSION" {
        return Ok(version::report().into_bytes());
    }
    let mut input = Vec::new();
    io::stdin()
        .read_to_end(&mut input)
        .map_err(|error| CniError::io(format!("error reading from stdin: {error}")))?;
    let conf = netconf::NetConf::parse(&input)?;
    let verb = Verb::named(&parameters.command)?;
    version::check(&conf.version, verb)?;
    verbs::run(verb, parameters, &conf)
}

/// A reader that went away takes nothing but the exit code.
fn ended(written: io::Result<()>, code: ExitCode) -> ExitCode {
    if written.is_ok() { code } else { ExitCode::FAILURE }
}
