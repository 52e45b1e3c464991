//! The options of `flanneld doctor`: those of the daemon, and how to say what was found.

use std::ffi::OsString;

use super::facts::Daemon;
use crate::flags::FlagError;
use crate::options::{self, Command, Options};

/// How to look.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct DoctorOptions {
    /// How the daemon is started, or would be.
    pub(crate) daemon: Options,
    /// Whether that was said, by flags or variables.
    is_told: bool,
    /// Write for programs.
    pub(crate) json: bool,
}

impl DoctorOptions {
    /// The flags to look by: those that were given, or those of the only daemon that runs.
    pub(super) fn flags(&self, daemons: &[Daemon]) -> Options {
        match daemons {
            [only] if !self.is_told => only.options.clone().unwrap_or_else(|_| self.daemon.clone()),
            _ => self.daemon.clone(),
        }
    }
}

/// Reads the arguments behind the word.
pub(crate) fn parse(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<DoctorOptions, FlagError> {
    let is_json = |argument: &OsString| argument == "--json" || argument == "-json";
    let json = arguments.iter().any(is_json);
    let arguments: Vec<OsString> = arguments.into_iter().filter(|argument| !is_json(argument)).collect();
    let is_told = !arguments.is_empty()
        || std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("FLANNELD_"));
    let daemon = of_daemon(arguments, environment)?.ok_or(FlagError::Help)?;
    Ok(DoctorOptions { daemon, is_told, json })
}

/// Reads the command line of a daemon; `None` if it asks for something else.
pub(super) fn of_daemon(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Options>, FlagError> {
    Ok(match options::parse(arguments, environment)? {
        Command::Run(options) => Some(*options),
        _ => None,
    })
}
