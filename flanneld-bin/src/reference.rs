//! The flags, subcommands and exit statuses of the program, for manuals.

pub use crate::flags::FlagDescription;
use crate::flags::describe;
use crate::options::table;
use crate::subcommands::{self, SUBCOMMANDS};

/// Flags of the daemon that belong together.
#[derive(Clone, Debug)]
pub struct FlagSection {
    /// The heading.
    pub title: &'static str,
    /// The flags, in reading order.
    pub flags: Vec<FlagDescription>,
}

/// A subcommand: `flanneld NAME [OPTION]...`.
#[derive(Clone, Debug)]
pub struct CommandDescription {
    /// The first argument.
    pub name: &'static str,
    /// One line about the command.
    pub purpose: &'static str,
    /// Its flags, in reading order.
    pub flags: Vec<FlagDescription>,
    /// Its exit statuses and their meanings.
    pub exit_statuses: &'static [(u8, &'static str)],
}

/// The exit status of the daemon and of every subcommand for an invalid command line, and its meaning.
pub const INVALID_COMMAND_LINE: (u8, &str) = subcommands::INVALID_COMMAND_LINE;

/// Returns the flags of the daemon.
pub fn flag_sections() -> Vec<FlagSection> {
    let sections = table::SECTIONS.iter();
    sections.map(|section| FlagSection { title: section.title, flags: describe(section.flags) }).collect()
}

/// Returns the subcommands.
pub fn commands() -> Vec<CommandDescription> {
    let commands = SUBCOMMANDS.iter().map(|command| CommandDescription {
        name: command.name,
        purpose: command.purpose,
        flags: (command.flags)(),
        exit_statuses: command.exit_statuses,
    });
    commands.collect()
}
