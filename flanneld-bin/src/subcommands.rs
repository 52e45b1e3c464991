//! What the program does beside running the daemon: `flanneld WORD [OPTION]...`.
//!
//! A new command is a row of [`SUBCOMMANDS`]; the usage text and the man page follow.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::process::ExitCode;

use crate::flags::{Described, FlagError};
use crate::{BAD_FLAGS, doctor, manual, migrate, options, ping, plan, show};

/// What every command and the daemon answer to a wrong command line.
pub(crate) const WRONG_FLAGS: (u8, &str) = (BAD_FLAGS, "a flag or variable is wrong.");

/// Every command.
pub(crate) const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "status",
        purpose: "show how the daemon on this host is",
        flags: options::show::described,
        exits: &[
            (0, "the daemon runs, and all is in order: what /readyz answers; or -watch ended."),
            (1, "no daemon runs here, or it does not answer."),
            WRONG_FLAGS,
            (show::NOT_IN_ORDER, "it runs, and something is not in order, which is shown."),
        ],
        run: show::status,
    },
    Subcommand {
        name: "peers",
        purpose: "show the other hosts, and how far each is reached",
        flags: options::show::described,
        exits: &[
            (0, "the daemon runs, and so do the ways to all peers, as far as it knows; or -watch ended."),
            (1, "no daemon runs here, or it does not answer."),
            WRONG_FLAGS,
            (show::NOT_IN_ORDER, "it runs, and a peer is pending or unreachable, which is shown."),
        ],
        run: show::peers,
    },
    Subcommand {
        name: "ping",
        purpose: "probe the other hosts, or those named behind it, inside and outside of the tunnel",
        flags: options::ping::described,
        exits: &[
            (0, "every peer that was probed is reached as it should be."),
            (1, "there is nothing to probe: no peer is known, or none is the one that was named."),
            WRONG_FLAGS,
            (show::NOT_IN_ORDER, "a peer is not reached as it should be, which is shown."),
        ],
        run: ping::run,
    },
    Subcommand {
        name: "plan",
        purpose: "show what would be written on this host now, and write nothing; takes the flags of the daemon too",
        flags: options::plan::described,
        exits: &[
            (0, "nothing would be written: the host is as it should be."),
            (1, "it cannot be told, and a line says why."),
            WRONG_FLAGS,
            (plan::SOMETHING, "something would be written, which is shown."),
        ],
        run: plan::run,
    },
    Subcommand {
        name: "migrate-etcd",
        purpose: "copy the network from etcd's v2 store to its v3 store while its hosts run",
        flags: options::migrate::described,
        exits: &[
            (0, "everything that can be read is in the v3 store, or would be."),
            (1, "a store does not answer or refuses, or there is nothing to move."),
            WRONG_FLAGS,
            (
                migrate::UNDECIDED,
                "something else is in the place of a lease or of the configuration, and was left there.",
            ),
        ],
        run: migrate::run,
    },
    Subcommand {
        name: "doctor",
        purpose: "say what is wrong on this host, why it matters and what cures it; takes the flags of the daemon, or \
                  those that it runs with",
        flags: options::doctor::described,
        exits: &[
            (0, "nothing is wrong."),
            (1, "something is broken, or the host cannot be looked at."),
            WRONG_FLAGS,
            (doctor::WARNINGS, "nothing is broken yet, and something should be looked after."),
        ],
        run: doctor::run,
    },
    Subcommand {
        name: "man",
        purpose: "print the manual, to be read with: flanneld man | man -l -",
        flags: manual::described,
        exits: &[(0, "it was printed."), WRONG_FLAGS],
        run: manual::run,
    },
];

/// One command.
pub(crate) struct Subcommand {
    /// The first argument that asks for it.
    pub(crate) name: &'static str,
    /// What it is for, as the usage text says it.
    pub(crate) purpose: &'static str,
    /// The flags that it takes, for its own usage text.
    pub(crate) flags: fn() -> Vec<Described>,
    /// Each exit status, and what it says.
    pub(crate) exits: &'static [(u8, &'static str)],
    /// Runs it with the arguments behind its name. What is wrong with them is told by the caller.
    pub(crate) run: fn(Vec<OsString>) -> Result<ExitCode, FlagError>,
}

/// The command that the first argument asks for.
pub(crate) fn named(word: &OsStr) -> Option<&'static Subcommand> {
    SUBCOMMANDS.iter().find(|command| command.name == word)
}

/// What the usage text of the daemon, run as `program`, says about the commands.
pub(crate) fn usage(program: &str) -> String {
    let mut text = "Other commands:\n".to_owned();
    for Subcommand { name, purpose, .. } in SUBCOMMANDS {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {program} {name} [OPTION]...\n    \t{purpose}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The statuses that a page of `docs/` has in its table, for a command or for all that it tells of.
    fn on_page(page: &str, command: &str) -> Option<Vec<u8>> {
        let mut lines = page.lines().skip_while(|line| {
            let named = line.contains(" of ");
            !line.starts_with("| exit status") || (named && !line.contains(&format!("`{command}`")))
        });
        lines.next()?;
        let rows = lines.skip(1).map_while(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
        Some(rows.collect())
    }

    #[test]
    fn the_pages_of_the_commands_tell_of_every_exit_status() {
        for (command, page) in [
            ("status", include_str!("../../docs/status.md")),
            ("peers", include_str!("../../docs/status.md")),
            ("plan", include_str!("../../docs/status.md")),
            ("ping", include_str!("../../docs/ping.md")),
            ("migrate-etcd", include_str!("../../docs/migrating-etcd.md")),
            ("doctor", include_str!("../../docs/doctor.md")),
        ] {
            let known = named(OsStr::new(command)).map(|found| found.exits).unwrap_or_default();
            let known: Vec<u8> = known.iter().map(|(status, _)| *status).collect();
            assert_eq!(on_page(page, command), Some(known), "{command}");
        }
    }
}
