//! The options of `flanneld plan`: those of the daemon, and how to write what was found.

use std::ffi::OsString;

use super::{Ignored, Options, check, table};
use crate::flags::{self, Described, FlagError};

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
    let (settings, arguments) = flags::read_command(&table::flags_to_look_by(), arguments, environment)?;
    let json = settings.json;
    let daemon = check(settings, Ignored::default()).map_err(|bad| arguments.refuse(&bad))?;
    Ok(PlanOptions { daemon, json })
}

/// The flags that only this command has; it takes those of the daemon as well.
pub(crate) fn described() -> Vec<Described> {
    flags::describe(&[table::JSON])
}
