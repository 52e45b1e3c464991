//! What the program does beside running the daemon: `flanneld WORD [OPTION]...`.
//!
//! A new command is a row of [`SUBCOMMANDS`]; the usage text and the man page follow.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::process::ExitCode;

use crate::flags::{Described, FlagError};
use crate::{doctor, manual, migrate, options, plan, show};

/// Every command.
pub(crate) const SUBCOMMANDS: &[Subcommand] = &[
    Subcommand {
        name: "status",
        purpose: "show how the daemon on this host is",
        flags: show::described,
        run: show::status,
    },
    Subcommand {
        name: "peers",
        purpose: "show the other hosts, and how far each is reached",
        flags: show::described,
        run: show::peers,
    },
    Subcommand {
        name: "plan",
        purpose: "show what would be written on this host now, and write nothing; takes the flags of the daemon too",
        flags: options::plan::described,
        run: plan::run,
    },
    Subcommand {
        name: "migrate-etcd",
        purpose: "copy the network from etcd's v2 store to its v3 store while its hosts run",
        flags: options::migrate::described,
        run: migrate::run,
    },
    Subcommand {
        name: "doctor",
        purpose: "say what is wrong on this host, why it matters and what cures it; takes the flags of the daemon, or \
                  those that it runs with",
        flags: options::doctor::described,
        run: doctor::run,
    },
    Subcommand {
        name: "man",
        purpose: "print the manual, to be read with: flanneld man | man -l -",
        flags: manual::described,
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
