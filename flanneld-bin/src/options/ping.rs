//! The options of `flanneld ping`.

use std::ffi::OsString;
use std::path::PathBuf;

use super::etcd::{etcd, etcd_api};
use super::{EtcdApi, EtcdOptions, Settings, bad, table, values};
use crate::flags::{self, BadValue, Flag, FlagDescription, FlagError, Kind};
use crate::format::Paint;

const OWN: &[Flag<Settings>] = &[
    Flag {
        name: "count",
        kind: Kind::Int(|s| &mut s.count),
        description: "number of small probes per path, from 1 to 1000",
    },
    Flag {
        name: "mesh",
        kind: Kind::Bool(|s| &mut s.mesh),
        description: "print a map with one character per peer instead of a table",
    },
    table::JSON,
    table::COLOR,
];

/// The options of the subcommand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PingOptions {
    /// The peers to probe; all if empty.
    pub(crate) peers: Vec<String>,
    /// The status socket of the daemon.
    pub(crate) socket: Option<PathBuf>,
    /// The cache of the daemon.
    pub(crate) cache: PathBuf,
    pub(crate) etcd: EtcdOptions,
    pub(crate) etcd_api: EtcdApi,
    /// The UDP port on which hosts answer probes.
    pub(crate) port: u16,
    pub(crate) count: u32,
    pub(crate) json: bool,
    pub(crate) mesh: bool,
    pub(crate) paint: Paint,
}

/// Parses the arguments after the subcommand.
pub(crate) fn parse(
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<PingOptions, FlagError> {
    let (settings, mut arguments) = flags::read_command_with_operands(&flags(), arguments, environment)?;
    let peers = std::mem::take(&mut arguments.ignored);
    check(&settings, peers).map_err(|bad| arguments.invalid(&bad))
}

fn check(settings: &Settings, peers: Vec<String>) -> Result<PingOptions, BadValue> {
    let count = u32::try_from(settings.count).ok().filter(|count| (1..=1000).contains(count));
    Ok(PingOptions {
        peers,
        socket: values::status_socket(&settings.status_socket, &settings.subnet_file),
        cache: format!("{}.cache", settings.subnet_file).into(),
        etcd: etcd(settings)?,
        etcd_api: etcd_api(&settings.etcd_api).map_err(|why| bad("etcd-api", why))?,
        port: values::mesh_port(settings.mesh_probe_port).map_err(|why| bad("mesh-probe-port", why))?,
        count: count.ok_or_else(|| bad("count", format!("{} is not within 1 and 1000", settings.count)))?,
        json: settings.json,
        mesh: settings.mesh,
        paint: Paint::parse(&settings.color).map_err(|why| bad("color", why))?,
    })
}

/// Describes the flags.
pub(crate) fn descriptions() -> Vec<FlagDescription> {
    flags::describe(&flags())
}

fn flags() -> Vec<Flag<Settings>> {
    const OF_DAEMON: [&str; 3] = ["subnet-file", "status-socket", "mesh-probe-port"];
    let mut flags = OWN.to_vec();
    let of_daemon = table::flags();
    flags.extend(
        of_daemon.into_iter().filter(|flag| OF_DAEMON.contains(&flag.name) || flag.name.starts_with("etcd-")),
    );
    flags
}
