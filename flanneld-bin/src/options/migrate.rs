//! The options of `flanneld migrate-etcd`: those of the daemon that say where etcd is, and what to do.

use std::ffi::OsString;

use super::{Command, EtcdOptions, FLAGS, Settings, etcd};
use crate::flags::{self, Flag, FlagError, Kind};

/// The word that asks for it, as the first argument.
pub(super) const NAME: &str = "migrate-etcd";
/// What it is for.
pub(super) const PURPOSE: &str = "copy the network from etcd's v2 store to its v3 store while its hosts run";

const DRY_RUN: Flag<Settings> = Flag {
    name: "dry-run",
    kind: Kind::Bool(|s| &mut s.dry_run),
    description: "write nothing, and say what would be done",
};

/// What to move.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MigrateOptions {
    pub(crate) etcd: EtcdOptions,
    /// Write nothing.
    pub(crate) dry_run: bool,
    /// How much to log; see [`crate::log::start`].
    pub(crate) verbosity: i64,
}

/// Reads the arguments behind the word.
pub(super) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, FlagError> {
    let (table, mut settings) = (table(), Settings::default());
    let arguments = match flags::parse_arguments(&table, arguments, &mut settings) {
        Err(FlagError::Help) => return Ok(Command::MigrateHelp),
        parsed => parsed?,
    };
    // The daemon ignores what follows the end of its flags. Here a `--dry-run` may be among it.
    if let Some(word) = arguments.ignored.first() {
        return Err(FlagError::Refused(format!("argument {word:?} is not expected")));
    }
    flags::apply_environment(&table, &arguments, environment, &mut settings)?;
    let etcd = etcd(&settings).map_err(FlagError::Refused)?;
    let Settings { dry_run, verbosity, .. } = settings;
    Ok(Command::Migrate(Box::new(MigrateOptions { etcd, dry_run, verbosity })))
}

/// The usage text of the command, run as `program migrate-etcd`.
pub(crate) fn usage(program: &str) -> String {
    flags::usage(&table(), &format!("{program} {NAME}"))
}

fn table() -> Vec<Flag<Settings>> {
    let is_shared = |flag: &&Flag<Settings>| {
        flag.name == "v" || (flag.name.starts_with("etcd-") && flag.name != "etcd-api")
    };
    FLAGS.iter().filter(is_shared).copied().chain([DRY_RUN]).collect()
}
