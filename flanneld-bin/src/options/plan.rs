//! The options of `flanneld plan`: those of the daemon, and how to write what was found.

use std::ffi::OsString;

use super::{IgnoredArguments, Options, check, table};
use crate::flags::{self, FlagDescription, FlagError};

/// What to look for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PlanOptions {
    /// How the daemon is started, or would be.
    pub(crate) daemon: Options,
    /// Write for programs.
    pub(crate) json: bool,
}

/// Reads the arguments behind the word.
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
