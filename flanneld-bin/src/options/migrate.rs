//! The options of `flanneld migrate-etcd`: those of the daemon that say where etcd is, and what to do.

use std::ffi::OsString;

use super::etcd::etcd;
use super::{EtcdOptions, Settings, table};
use crate::flags::{self, Flag, FlagDescription, FlagError, Kind};

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
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<MigrateOptions, FlagError> {
    let (settings, arguments) = flags::read_command(&flags(), arguments, environment)?;
    let etcd = etcd(&settings).map_err(|bad| arguments.invalid(&bad))?;
    let Settings { dry_run, verbosity, .. } = settings;
    Ok(MigrateOptions { etcd, dry_run, verbosity })
}

/// The flags, for the usage text.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&flags())
}

fn flags() -> Vec<Flag<Settings>> {
    let mut flags = table::flags();
    flags.retain(|flag| flag.name == "v" || (flag.name.starts_with("etcd-") && flag.name != "etcd-api"));
    flags.push(DRY_RUN);
    flags
}
