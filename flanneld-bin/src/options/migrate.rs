//! The options of `flanneld migrate-etcd`.

use std::ffi::OsString;

use super::etcd::etcd;
use super::{EtcdOptions, Settings, table};
use crate::flags::{self, Flag, FlagDescription, FlagError, Kind};

const DRY_RUN: Flag<Settings> = Flag {
    name: "dry-run",
    kind: Kind::Bool(|s| &mut s.dry_run),
    description: "write nothing, and print what would be written",
};

/// The options of the subcommand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MigrateOptions {
    pub(crate) etcd: EtcdOptions,
    /// Only print what would be written.
    pub(crate) dry_run: bool,
    /// The log verbosity.
    pub(crate) verbosity: i64,
}

/// Parses the arguments after the subcommand.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<MigrateOptions, FlagError> {
    let (settings, arguments) = flags::read_command(&flags(), arguments, environment)?;
    let etcd = etcd(&settings).map_err(|bad| arguments.invalid(&bad))?;
    let Settings { dry_run, verbosity, .. } = settings;
    Ok(MigrateOptions { etcd, dry_run, verbosity })
}

/// Describes the flags.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&flags())
}

fn flags() -> Vec<Flag<Settings>> {
    let mut flags = table::flags();
    flags.retain(|flag| flag.name == "v" || (flag.name.starts_with("etcd-") && flag.name != "etcd-api"));
    flags.push(DRY_RUN);
    flags
}
