//! The text of the manual, from which the man page and the page of flags are formatted.

use flanneld::reference::{self, FlagDescription, INVALID_COMMAND_LINE};

/// A part of the manual. Text between backticks is literal.
pub(crate) enum Part {
    Section(&'static str),
    Subsection(String),
    Text(String),
    Flags(Vec<FlagDescription>),
    /// Terms and their meanings.
    Terms(&'static [(&'static str, &'static str)]),
    /// Exit statuses and their meanings.
    ExitStatuses(&'static [(u8, &'static str)]),
}

pub(crate) fn manual() -> Vec<Part> {
    let mut parts =
        vec![Part::Text(OVERVIEW.to_owned()), Part::Section("Options"), Part::Text(FLAG_SYNTAX.to_owned())];
    for section in reference::flag_sections() {
        parts.extend([Part::Subsection(section.title.to_owned()), Part::Flags(section.flags)]);
    }
    parts.push(Part::Section("Commands"));
    for command in reference::commands() {
        let purpose = format!("`flanneld {} [OPTION]...`: {}.", command.name, command.purpose);
        parts.extend([Part::Subsection(command.name.to_owned()), Part::Text(purpose)]);
        if !command.flags.is_empty() {
            parts.push(Part::Flags(command.flags));
        }
        parts.push(Part::ExitStatuses(command.exit_statuses));
    }
    parts.extend([Part::Section("Interface"), Part::Text(INTERFACE_SELECTION.to_owned())]);
    for (title, terms) in [("Log", LOG), ("Environment", ENVIRONMENT), ("Signals", SIGNALS)] {
        parts.extend([Part::Section(title), Part::Terms(terms)]);
    }
    let scope = Part::Text("Of the daemon; each command above lists its own.".to_owned());
    parts.extend([Part::Section("Exit status"), scope, Part::ExitStatuses(EXIT_STATUSES)]);
    parts.extend([Part::Section("Files"), Part::Terms(FILES)]);
    parts
}

const OVERVIEW: &str = "`flanneld` leases a subnet for this host from the network configured in etcd under \
    `PREFIX/config`, learns the subnets of all other hosts, and carries packets of containers between them. It runs in \
    the foreground, logs to standard error, and notifies systemd (`Type=notify`) when containers can be started.";

const FLAG_SYNTAX: &str = "Flags take one dash or two, and `-flag=value` or `-flag value`. A boolean flag is `-flag` or \
    `-flag=false`; a separate value ends the flags. Arguments after the last flag are ignored. If a flag is repeated, the \
    last value counts, except for `-iface` and `-iface-regex`, which collect all values. Integers accept Go's syntax \
    (`0x10`, `1_000`), and durations are written as `90s` or `1h30m`. The environment sets flags that the command line \
    does not: `FLANNELD_ETCD_PREFIX` for `-etcd-prefix`, and so on; an empty variable is ignored. An invalid flag or \
    variable ends the program with exit status 2 and a line that names it.";

const INTERFACE_SELECTION: &str = "The external interface is the first match of: each `-iface`; each `-iface-regex` (the \
    first interface with a matching address, or else with a matching name); `-iface-can-reach`. Without these flags it is \
    the interface with the address of `-public-ip` or `-public-ipv6`, or else that of the default route. It needs an \
    address of each family that the network uses; the address of the cached lease is preferred \
    while the interface has it, then a global address with an on-link prefix, permanent before dynamic; a single-host \
    address (/32, /128), which may float between hosts, comes last. The daemon follows changes of the interface and its \
    addresses while it runs. When an address disappears, the daemon waits 3 s for its return before it selects another. \
    When the address returns, the daemon goes back to it: at any time from a single-host address, and within 10 minutes \
    from any other.";

const LOG: &[(&str, &str)] = &[
    (
        "I1121 01:02:03.123456    3068 main.rs:12] message key=value",
        "a line of -log-format=text: I, W or E for information, warning or error; month and day; local time; process; \
         source line; message; fields.",
    ),
    (
        "{\"time\":…,\"level\":…,\"process\":…,\"place\":…,\"message\":…,\"fields\":{…}}",
        "a line of -log-format=json: the time is in UTC (RFC 3339); the level is error, warn, info, debug or trace; place \
         is the source line; fields is omitted if there are none.",
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("FLANNELD_*", "the flags that the command line does not set, except -version; see Options."),
    ("NOTIFY_SOCKET", "the notification socket of systemd; set by systemd."),
];

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGTERM, SIGINT",
        "stop. Device, routes, rules, subnet file and lease stay, so that traffic continues and the next start adopts \
         them; with -release-on-exit all are removed.",
    ),
    ("SIGHUP", "read the network config now and apply a change, also with -follow-config=false."),
];

const EXIT_STATUSES: &[(u8, &str)] = &[
    (0, "a signal stopped the daemon, or it printed the help or the version."),
    (
        1,
        "it cannot start: there is no matching interface, a capability or a certificate is missing, or the backend cannot \
         be opened. Or, with -release-on-exit, the lease could not be released.",
    ),
    INVALID_COMMAND_LINE,
];

const FILES: &[(&str, &str)] = &[
    (
        "/run/flannel/subnet.env",
        "the subnet of this host and its MTU, for the container runtime (-subnet-file).",
    ),
    ("/run/flannel/subnet.env.cache", "the last known state of the network, for a start without etcd."),
    ("/run/flannel/subnet.env.node-id", "the ID by which this host recognises its own lease."),
    ("/run/flannel/subnet.env.sock", "the socket on which the daemon answers the commands (-status-socket)."),
];
