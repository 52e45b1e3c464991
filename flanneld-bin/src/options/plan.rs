//! The options of `flanneld plan`.

use std::ffi::OsString;

use super::{IgnoredArguments, Options, check, table};
use crate::flags::{self, FlagDescription, FlagError};

/// The options of the subcommand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PlanOptions {
    /// The options of the daemon.
    pub(crate) daemon: Options,
    /// Print JSON.
    pub(crate) json: bool,
}

/// Parses the arguments after the subcommand.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<PlanOptions, FlagError> {
    let (settings, arguments) = flags::read_command(&table::daemon_flags_and_json(), arguments, environment)?;
    let json = settings.json;
    let daemon = check(settings, IgnoredArguments::default()).map_err(|bad| arguments.invalid(&bad))?;
    Ok(PlanOptions { daemon, json })
}

/// The flags that only this command has; it takes those of the daemon as well.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&[table::JSON])
}
