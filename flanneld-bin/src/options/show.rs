//! The options of `flanneld status` and `flanneld peers`: which daemon to ask, and how to show what it says.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Settings, bad, table, values};
use crate::flags::{self, BadValue, Flag, FlagDescription, FlagError, Kind};
use crate::show;
use crate::show::format::Paint;

const FLAGS: &[Flag<Settings>] = &[
    table::JSON,
    Flag {
        name: "watch",
        kind: Kind::Bool(|s| &mut s.watch),
        description: "show it again every two seconds, until interrupted; with -json a line each time",
    },
    table::COLOR,
    Flag {
        name: "subnet-file",
        kind: Kind::Text(|s| &mut s.subnet_file),
        description: "the -subnet-file of the daemon to ask, which tells where its socket is",
    },
    Flag {
        name: "status-socket",
        kind: Kind::Text(|s| &mut s.status_socket),
        description: "the -status-socket of the daemon to ask, if it has one",
    },
];

/// How to show.
pub(crate) struct ShowOptions {
    /// Where the daemon is asked.
    pub(crate) socket: PathBuf,
    /// Write for programs.
    pub(crate) json: bool,
    /// Again and again.
    pub(crate) watch: bool,
    pub(crate) paint: Paint,
}

/// Reads the arguments behind the word.
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
        paint: show::paint(&settings.color).map_err(|why| bad("color", why))?,
        socket: socket.ok_or_else(|| bad("status-socket", "off is no socket to ask at".to_owned()))?,
        json: settings.json,
        watch: settings.watch,
    })
}

/// The flags, for the usage text.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(FLAGS)
}
