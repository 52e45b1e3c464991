//! The table of subcommands: `flanneld NAME [OPTION]...`. The usage text and the man page derive from it.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::process::ExitCode;

use crate::flags::{FlagDescription, FlagError};
use crate::{Host, doctor, migrate, options, ping, plan, show};

/// The exit status of every subcommand and of the daemon for an invalid command line.
pub(crate) const INVALID_COMMAND_LINE: (u8, &str) =
    (crate::INVALID_COMMAND_LINE, "a flag or variable is invalid.");

/// Every subcommand.
pub(crate) const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "status",
        purpose: "show the status of the daemon on this host",
        flags: options::show::descriptions,
        exit_statuses: &[
            (0, "the daemon runs without faults, as /readyz reports; or -watch was interrupted."),
            (1, "no daemon runs on this host, or it does not answer."),
            INVALID_COMMAND_LINE,
            (show::FAULT, "the daemon runs and reports a fault."),
        ],
        run: show::status,
    },
    Subcommand {
        name: "peers",
        purpose: "show the other hosts and their reachability",
        flags: options::show::descriptions,
        exit_statuses: &[
            (0, "the daemon runs and knows of no unreachable peer; or -watch was interrupted."),
            (1, "no daemon runs on this host, or it does not answer."),
            INVALID_COMMAND_LINE,
            (show::FAULT, "a peer is pending or unreachable."),
        ],
        run: show::peers,
    },
    Subcommand {
        name: "ping",
        purpose: "probe the other hosts, or those named as arguments, inside and outside of the tunnel",
        flags: options::ping::descriptions,
        exit_statuses: &[
            (0, "every probed peer is reachable without faults."),
            (1, "there is nothing to probe: there are no peers, or none matches the arguments."),
            INVALID_COMMAND_LINE,
            (show::FAULT, "a peer is unreachable or a probe found a fault."),
        ],
        run: ping::run,
    },
    Subcommand {
        name: "plan",
        purpose: "show what the daemon would change on this host now, without changing it; also takes the daemon's flags",
        flags: options::plan::descriptions,
        exit_statuses: &[
            (0, "the daemon would change nothing."),
            (1, "the plan cannot be computed; a line names the cause."),
            INVALID_COMMAND_LINE,
            (plan::CHANGES, "the daemon would change something."),
        ],
        run: plan::run,
    },
    Subcommand {
        name: "migrate-etcd",
        purpose: "copy the network from etcd's v2 store to its v3 store while the hosts run",
        flags: options::migrate::descriptions,
        exit_statuses: &[
            (0, "every valid record is in the v3 store, or would be with -dry-run."),
            (1, "a store does not respond or refuses a request, or there is no network to copy."),
            INVALID_COMMAND_LINE,
            (
                migrate::CONFLICTS,
                "the v3 store has another lease or config under a key; it was not overwritten.",
            ),
        ],
        run: migrate::run,
    },
    Subcommand {
        name: "doctor",
        purpose: "find faults of this host and print their effects and cures; takes the daemon's flags, by default those \
                  of the running daemon",
        flags: options::doctor::descriptions,
        exit_statuses: &[
            (0, "there are no findings."),
            (1, "an error was found, or the host cannot be examined."),
            INVALID_COMMAND_LINE,
            (doctor::WARNINGS, "only warnings were found."),
        ],
        run: doctor::run,
    },
];

/// A subcommand.
pub(crate) struct Subcommand {
    /// The first argument.
    pub(crate) name: &'static str,
    /// One line for the usage text.
    pub(crate) purpose: &'static str,
    /// Returns its flags, for its usage text.
    pub(crate) flags: fn() -> Vec<FlagDescription>,
    /// Its exit statuses and their meanings.
    pub(crate) exit_statuses: &'static [(u8, &'static str)],
    /// Runs it with the arguments after its name. The caller prints the error.
    pub(crate) run: fn(Vec<OsString>, &Host) -> Result<ExitCode, FlagError>,
}

/// Finds a subcommand by its name.
pub(crate) fn find(name: &OsStr) -> Option<&'static Subcommand> {
    SUBCOMMANDS.iter().find(|command| command.name == name)
}

/// Returns the part of the daemon's usage text about the subcommands.
pub(crate) fn usage(program: &str) -> String {
    let mut text = "Commands:\n".to_owned();
    for Subcommand { name, purpose, .. } in SUBCOMMANDS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {program} {name} [OPTION]...\n    \t{purpose}");
    }
    text
}

#[cfg(test)]
mod tests;
