//! The options of `flanneld status` and `flanneld peers`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Settings, bad, table, values};
use crate::flags::{self, BadValue, Flag, FlagDescription, FlagError, Kind};
use crate::format::Paint;

const FLAGS: &[Flag<Settings>] = &[
    table::JSON,
    Flag {
        name: "watch",
        kind: Kind::Bool(|s| &mut s.watch),
        description: "repeat every two seconds until interrupted; with -json, one line each time",
    },
    table::COLOR,
    Flag {
        name: "subnet-file",
        kind: Kind::Text(|s| &mut s.subnet_file),
        description: "the -subnet-file of the daemon, which determines the default of -status-socket",
    },
    Flag {
        name: "status-socket",
        kind: Kind::Text(|s| &mut s.status_socket),
        description: "the -status-socket of the daemon",
    },
];

/// The options of both subcommands.
pub(crate) struct ShowOptions {
    /// The status socket of the daemon.
    pub(crate) socket: PathBuf,
    /// Print JSON.
    pub(crate) json: bool,
    /// Repeat until interrupted.
    pub(crate) watch: bool,
    pub(crate) paint: Paint,
}

/// Parses the arguments after the subcommand.
pub(crate) fn parse(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<ShowOptions, FlagError> {
    let (settings, arguments) = flags::read_command(FLAGS, arguments, environment)?;
    check(&settings).map_err(|bad| arguments.invalid(&bad))
}

fn check(settings: &Settings) -> Result<ShowOptions, BadValue> {
    let socket = values::status_socket(&settings.status_socket, &settings.subnet_file);
    Ok(ShowOptions {
        paint: Paint::parse(&settings.color).map_err(|why| bad("color", why))?,
        socket: socket
            .ok_or_else(|| bad("status-socket", "a daemon without a socket cannot be queried".to_owned()))?,
        json: settings.json,
        watch: settings.watch,
    })
}

/// Describes the flags.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(FLAGS)
}
