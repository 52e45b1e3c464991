//! The manual of the program, made of the table of its flags: as a man page, and as a page of `docs/`.
//!
//! The files `dist/flanneld.8` and `docs/flags.md` are what `flanneld man` prints; a test compares them.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::flags::{self, BadValue, Described, Flag, FlagError, Kind};
use crate::options::table;
use crate::subcommands::{SUBCOMMANDS, WRONG_FLAGS};

mod markdown;
mod roff;

/// What the command `man` is told.
struct Settings {
    format: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: "roff".to_owned() }
    }
}

const FLAGS: &[Flag<Settings>] = &[Flag {
    name: "format",
    kind: Kind::Text(|s| &mut s.format),
    description: "roff for man(1), or markdown",
}];

/// The flags of the command.
pub(crate) fn described() -> Vec<Described> {
    flags::describe(FLAGS)
}

/// Prints the manual.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let (settings, arguments) = flags::read_command(FLAGS, arguments, |variable| env::var_os(variable))?;
    let format = settings.format;
    let text = match format.as_str() {
        "roff" => roff::page(&manual()),
        "markdown" => markdown::page(&manual()),
        _ => {
            let why = format!("{format:?} is neither roff nor markdown");
            return Err(arguments.refuse(&BadValue { flag: "format", why }));
        }
    };
    // Whoever closes it early, such as a pager, has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// A part of the manual. Text between backticks is to be typed or found as it is.
enum Part {
    Section(&'static str),
    Subsection(String),
    Text(String),
    Flags(Vec<Described>),
    /// Words and what they mean.
    Terms(&'static [(&'static str, &'static str)]),
    /// Exit statuses and what they say.
    Exits(&'static [(u8, &'static str)]),
}

fn manual() -> Vec<Part> {
    let mut parts = vec![
        Part::Text(WHAT_IT_IS.to_owned()),
        Part::Section("Options"),
        Part::Text(HOW_FLAGS_ARE_WRITTEN.to_owned()),
    ];
    for section in table::SECTIONS {
        let flags = flags::describe(section.flags);
        if !flags.is_empty() {
            parts.extend([Part::Subsection(section.title.to_owned()), Part::Flags(flags)]);
        }
    }
    parts.push(Part::Section("Commands"));
    for command in SUBCOMMANDS {
        let purpose = format!("`flanneld {} [OPTION]...`: {}.", command.name, command.purpose);
        parts.extend([Part::Subsection(command.name.to_owned()), Part::Text(purpose)]);
        let flags = (command.flags)();
        if !flags.is_empty() {
            parts.push(Part::Flags(flags));
        }
        parts.push(Part::Exits(command.exits));
    }
    parts.extend([Part::Section("Interface"), Part::Text(HOW_THE_INTERFACE_IS_CHOSEN.to_owned())]);
    for (title, terms) in [("Log", LOG), ("Environment", ENVIRONMENT), ("Signals", SIGNALS)] {
        parts.extend([Part::Section(title), Part::Terms(terms)]);
    }
    parts.extend([Part::Section("Exit status"), Part::Text(WHOSE_STATUS.to_owned()), Part::Exits(EXITS)]);
    parts.extend([Part::Section("Files"), Part::Terms(FILES)]);
    parts
}

const WHAT_IT_IS: &str = "`flanneld` gives this host a subnet of the network that is described in etcd under \
    `PREFIX/config`, learns the subnets of all other hosts, and carries packets of containers between them. It runs in \
    the foreground, logs to standard error, and tells systemd (`Type=notify`) when containers can be started.";

const HOW_FLAGS_ARE_WRITTEN: &str = "One dash or two; `-flag=value`, or `-flag value` unless the flag is true or \
    false: those are `-flag` or `-flag=false`, and a word behind them ends the flags. What follows the end of the flags \
    is not used. A flag that is given twice has its last value, but the values of `-iface` and `-iface-regex` collect. \
    Whole numbers may be written as in Go (`0x10`, `1_000`), times as `90s`, `1h30m`. A flag that is not given is looked \
    up in the environment: `FLANNELD_ETCD_PREFIX` for `-etcd-prefix` and so on; a variable that is empty does not count. \
    A flag or variable that cannot be used ends the program with exit status 2 and a line that names it.";

const HOW_THE_INTERFACE_IS_CHOSEN: &str = "The external interface is the first that fits of these: each `-iface`, each \
    `-iface-regex` (the first interface of which an address fits or, if there is none, the first whose name does), \
    `-iface-can-reach`. If none of them is given, it is the one that has the address of `-public-ip` or `-public-ipv6`, \
    or else that of the default route. It needs an address of each family that the network uses; permanent global ones \
    go first. While the daemon runs, the interface and its address are followed.";

const LOG: &[(&str, &str)] = &[
    (
        "I1121 01:02:03.123456    3068 main.rs:12] message key=value",
        "a line of -log-format=text: I, W or E for information, warning or error, then month and day, local time, \
         process, place in the source, message, and what belongs to it.",
    ),
    (
        "{\"time\":…,\"level\":…,\"process\":…,\"place\":…,\"message\":…,\"fields\":{…}}",
        "a line of -log-format=json: the time is in UTC as in RFC 3339, the level error, warn, info, debug or trace; \
         fields are there only if something belongs to the message.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("FLANNELD_*", "flags that are not given; see Options. There is none for -version."),
    ("NOTIFY_SOCKET", "where systemd wants to be told; set by systemd."),
];

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "end. Device, routes, rules, subnet file and lease stay, so that traffic goes on and the next start takes them \
         over; with -release-on-exit all are removed.",
    ),
    ("SIGHUP", "read the network config now, and take in what is new, also with -follow-config=false."),
];

const WHOSE_STATUS: &str = "Of the daemon; those of the commands stand with each.";

const EXITS: &[(u8, &str)] = &[
    (0, "told to end by a signal; or the help or the version was asked for."),
    (
        1,
        "cannot start: no such interface, a capability or a certificate is missing, or the backend cannot be used. Or \
         the end failed: with -release-on-exit the lease could not be given back.",
    ),
    WRONG_FLAGS,
];

const FILES: &[(&str, &str)] = &[
    (
        "/run/flannel/subnet.env",
        "the subnet of this host and its MTU, for the container runtime (-subnet-file).",
    ),
    (
        "/run/flannel/subnet.env.cache",
        "what was known of the network last, to start from while etcd is away.",
    ),
    ("/run/flannel/subnet.env.node-id", "by what this host knows its lease again."),
    ("/run/flannel/subnet.env.sock", "where the commands ask the daemon that runs (-status-socket)."),
];
