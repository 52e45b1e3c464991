//! The options of `flanneld doctor`.

use std::ffi::OsString;
use std::path::Path;

use super::{IgnoredArguments, Options, Request, check, table};
use crate::flags::{self, FlagDescription, FlagError};

/// The options of the subcommand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DoctorOptions {
    /// The options of the daemon.
    pub(crate) daemon: Options,
    /// How the command line selects a running daemon.
    selection: DaemonSelection,
    /// Print JSON.
    pub(crate) json: bool,
}

/// How a command line selects the running daemon whose options to use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum DaemonSelection {
    /// No flag or variable is set: the only daemon.
    Only,
    /// Only the subnet file is set: the daemon with this file.
    SubnetFile,
    /// Others are set: none; they are the options to use.
    None,
}

impl DoctorOptions {
    /// Returns the position of the selected daemon among the running ones, given their subnet files. With `None`, the
    /// options of the command line count.
    pub(crate) fn choose<'a>(
        &self,
        mut running: impl ExactSizeIterator<Item = Option<&'a Path>>,
    ) -> Option<usize> {
        let is_only = running.len() == 1;
        running.position(|file| match self.selection {
            DaemonSelection::Only => is_only && file.is_some(),
            DaemonSelection::SubnetFile => file == Some(&*self.daemon.subnet_file),
            DaemonSelection::None => false,
        })
    }
}

/// Parses the arguments after the subcommand.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<DoctorOptions, FlagError> {
    let (settings, arguments) = flags::read_command(&table::daemon_flags_and_json(), arguments, environment)?;
    let json = settings.json;
    let selection = match () {
        () if arguments.has_only(&[table::JSON.name]) => DaemonSelection::Only,
        () if arguments.has_only(&[table::JSON.name, "subnet-file"]) => DaemonSelection::SubnetFile,
        () => DaemonSelection::None,
    };
    let daemon = check(settings, IgnoredArguments::default()).map_err(|bad| arguments.invalid(&bad))?;
    Ok(DoctorOptions { daemon, selection, json })
}

/// Describes the flags except those of the daemon.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&[table::JSON])
}

/// Parses the command line of another process; `None` if it does not run the daemon.
pub(crate) fn of_daemon(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Options>, FlagError> {
    if arguments.first().is_some_and(|name| crate::subcommands::find(name).is_some()) {
        return Ok(None);
    }
    match super::parse(arguments, environment) {
        Ok(Request::Run(options)) => Ok(Some(*options)),
        Ok(Request::Version) | Err(FlagError::Help) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
