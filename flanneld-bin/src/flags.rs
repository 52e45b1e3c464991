//! Command-line flags and environment variables in the manner of Go's `flag` package, which upstream's
//! users, units and scripts rely on (<https://pkg.go.dev/flag>).
//!
//! 1. A table of [`Flag`]s says which field of a settings struct each flag writes to.
//! 2. [`parse_arguments`] applies the arguments; the last occurrence wins, lists collect.
//! 3. [`apply_environment`] applies `FLANNELD_*` to every flag that the arguments did not give.
//! 4. [`describe`] tells what there is, with the defaults taken from the settings' `Default`; [`usage`] is its text.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use crate::go_duration;
use crate::go_syntax::{parse_bool, parse_int, quote};

/// What every environment variable that stands for a flag begins with.
const ENVIRONMENT_PREFIX: &str = "FLANNELD_";

/// The flag that no variable stands for, so that none makes a unit print the version and succeed.
const WITHOUT_VARIABLE: &str = "version";

/// One flag of a command whose settings are a `T`.
pub(crate) struct Flag<T: 'static> {
    /// The name, without dashes.
    pub(crate) name: &'static str,
    /// What the flag takes, and where it is stored.
    pub(crate) kind: Kind<T>,
    /// What the usage text says about it.
    pub(crate) description: &'static str,
}

impl<T> Clone for Flag<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Flag<T> {}

/// What a flag takes, with the field that it writes to.
pub(crate) enum Kind<T> {
    /// True or false; `-name` alone means true.
    Bool(fn(&mut T) -> &mut bool),
    /// A whole number.
    Int(fn(&mut T) -> &mut i64),
    /// A whole number that need not be given.
    OptionalInt(fn(&mut T) -> &mut Option<i64>),
    /// A time, such as `24h` or `1h30m`.
    Duration(fn(&mut T) -> &mut Duration),
    /// Any text.
    Text(fn(&mut T) -> &mut String),
    /// Any text, collected from every occurrence.
    List(fn(&mut T) -> &mut Vec<String>),
}

// Deriving these would ask the same of the settings.
impl<T> Clone for Kind<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Kind<T> {}

impl<T> Kind<T> {
    /// Stores one occurrence of the flag.
    fn store(&self, settings: &mut T, value: &str) -> Result<(), &'static str> {
        match self {
            Self::Bool(field) => *field(settings) = parse_bool(value).ok_or("parse error")?,
            Self::Int(field) => *field(settings) = parse_int(value)?,
            Self::OptionalInt(field) => *field(settings) = Some(parse_int(value)?),
            Self::Duration(field) => *field(settings) = go_duration::parse(value).ok_or("parse error")?,
            Self::Text(field) => value.clone_into(field(settings)),
            Self::List(field) => field(settings).push(value.to_owned()),
        }
        Ok(())
    }
}

/// Why the flags could not be used.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum FlagError {
    /// `-h` or `-help` was given: print the usage text, which is no failure.
    #[error("help requested")]
    Help,
    /// The arguments are not what the usage text says: print this line, then the usage text.
    #[error("{0}")]
    Syntax(String),
    /// The arguments are well formed but cannot be honoured: print this line alone.
    #[error("{0}")]
    Refused(String),
}

/// What the arguments contained besides values.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Arguments {
    /// The flags that were given; the environment does not touch them.
    given: BTreeSet<&'static str>,
    /// The flags that a variable spoke for.
    from_environment: BTreeSet<&'static str>,
    /// What followed the end of the flags and is not used.
    pub(crate) ignored: Vec<String>,
}

/// What followed the end of the flags, as far as it can be told: there may be a password in it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Ignored {
    /// How many arguments; empty ones, which a unit makes of a variable that is not set, do not count.
    pub(crate) count: usize,
    /// The flags among them.
    pub(crate) flags: Vec<&'static str>,
}

impl Ignored {
    /// Finds out what is known of `arguments`.
    pub(crate) fn new<T>(flags: &[Flag<T>], arguments: &[String]) -> Self {
        let known = |argument: &String| {
            let name = argument.trim_start_matches('-').split('=').next()?;
            let flag = flags.iter().find(|flag| flag.name == name)?;
            argument.starts_with('-').then_some(flag.name)
        };
        let count = arguments.iter().filter(|argument| !argument.is_empty()).count();
        Self { count, flags: arguments.iter().filter_map(known).collect() }
    }
}

impl Arguments {
    /// Tells whether no other flags than these were given, nor a variable for one.
    pub(crate) fn say_nothing_but(&self, flags: &[&str]) -> bool {
        self.given.iter().chain(&self.from_environment).all(|given| flags.contains(given))
    }

    /// Refuses a value where it came from: the flag, or the variable that spoke for it.
    pub(crate) fn refuse(&self, bad: &BadValue) -> FlagError {
        let BadValue { flag, why } = bad;
        if self.from_environment.contains(flag) {
            FlagError::Refused(format!("{}: {why}", environment_variable(flag)))
        } else {
            FlagError::Refused(format!("flag -{flag}: {why}"))
        }
    }
}

/// A value that is well formed and cannot be used.
#[derive(Debug)]
pub(crate) struct BadValue {
    /// The name of the flag.
    pub(crate) flag: &'static str,
    /// What is wrong with it.
    pub(crate) why: String,
}

/// Applies `arguments` (without the program's name) to `settings`.
pub(crate) fn parse_arguments<T>(
    flags: &[Flag<T>],
    arguments: impl IntoIterator<Item = OsString>,
    settings: &mut T,
) -> Result<Arguments, FlagError> {
    let mut arguments = unicode(arguments)?.into_iter();
    let mut given = BTreeSet::new();
    while let Some(argument) = arguments.next() {
        let Some(word) = flag_word(&argument)? else {
            // `--` only ends the flags; any other word that is no flag is itself the first one ignored.
            let first = (argument != "--").then_some(argument);
            let ignored = first.into_iter().chain(arguments).collect();
            return Ok(Arguments { given, ignored, ..Arguments::default() });
        };
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        let flag = find(flags, name)?;
        set_from_arguments(flag, value, &mut arguments, settings)?;
        given.insert(flag.name);
    }
    Ok(Arguments { given, ..Arguments::default() })
}

/// Turns every argument into text, or says which one is not: by its number, because it may be a password.
fn unicode(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<String>, FlagError> {
    let text = |(number, argument): (usize, OsString)| {
        let bad = |_| FlagError::Refused(format!("argument {} is not valid UTF-8", number + 1));
        argument.into_string().map_err(bad)
    };
    arguments.into_iter().enumerate().map(text).collect()
}

/// The text of a flag after its dashes; none if `argument` is no flag and so ends them.
fn flag_word(argument: &str) -> Result<Option<&str>, FlagError> {
    let Some(rest) = argument.strip_prefix('-') else {
        return Ok(None);
    };
    let word = rest.strip_prefix('-').unwrap_or(rest);
    match word.chars().next() {
        None if argument.len() <= 2 => Ok(None),
        None | Some('-' | '=') => Err(FlagError::Syntax(format!("bad flag syntax: {argument}"))),
        Some(_) => Ok(Some(word)),
    }
}

/// The row of the table called `name`.
fn find<'f, T>(flags: &'f [Flag<T>], name: &str) -> Result<&'f Flag<T>, FlagError> {
    match flags.iter().find(|flag| flag.name == name) {
        Some(flag) => Ok(flag),
        None if name == "h" || name == "help" => Err(FlagError::Help),
        None => Err(FlagError::Syntax(format!("flag provided but not defined: -{name}"))),
    }
}

/// Stores `value`, or what `flag` takes when it has none: `true`, or the next argument whatever it is.
fn set_from_arguments<T>(
    flag: &Flag<T>,
    value: Option<String>,
    arguments: &mut impl Iterator<Item = String>,
    settings: &mut T,
) -> Result<(), FlagError> {
    let name = flag.name;
    let is_bool = matches!(flag.kind, Kind::Bool(_));
    let value = match (value, &flag.kind) {
        (Some(value), _) => value,
        (None, Kind::Bool(_)) => "true".to_owned(),
        (None, Kind::Int(_) | Kind::OptionalInt(_) | Kind::Duration(_) | Kind::Text(_) | Kind::List(_)) => {
            arguments.next().ok_or_else(|| FlagError::Syntax(format!("flag needs an argument: -{name}")))?
        }
    };
    flag.kind.store(settings, &value).map_err(|why| {
        let value = quote(&value);
        FlagError::Syntax(if is_bool {
            format!("invalid boolean value {value} for -{name}: {why}")
        } else {
            format!("invalid value {value} for flag -{name}: {why}")
        })
    })
}

/// Applies the environment, read through `lookup`, to every flag that `arguments` did not give.
///
/// An empty variable counts as absent. A variable is one occurrence of its flag, also of a list.
pub(crate) fn apply_environment<T>(
    flags: &[Flag<T>],
    arguments: &mut Arguments,
    lookup: impl Fn(&str) -> Option<OsString>,
    settings: &mut T,
) -> Result<(), FlagError> {
    for flag in flags {
        if arguments.given.contains(flag.name) || flag.name == WITHOUT_VARIABLE {
            continue;
        }
        let variable = environment_variable(flag.name);
        let Some(value) = lookup(&variable).filter(|value| !value.is_empty()) else {
            continue;
        };
        let value = value
            .into_string()
            .map_err(|_| FlagError::Refused(format!("the value of {variable} is not valid UTF-8")))?;
        flag.kind.store(settings, &value).map_err(|why| {
            FlagError::Refused(format!("invalid value {} for {variable}: {why}", quote(&value)))
        })?;
        arguments.from_environment.insert(flag.name);
    }
    Ok(())
}

/// The environment variable that stands for the flag `name`.
fn environment_variable(name: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Reads the arguments and the variables of a command that takes flags only.
pub(crate) fn read_command<T: Default>(
    flags: &[Flag<T>],
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<(T, Arguments), FlagError> {
    let mut settings = T::default();
    let mut arguments = parse_arguments(flags, arguments, &mut settings)?;
    // The daemon ignores what follows the end of its flags. Here a `--dry-run` may be among it.
    if let Some(word) = arguments.ignored.first() {
        return Err(FlagError::Refused(format!("argument {word:?} is not expected")));
    }
    apply_environment(flags, &mut arguments, environment, &mut settings)?;
    Ok((settings, arguments))
}

/// Reads the arguments and the variables of a command that takes words, too, before, between and behind its flags: they
/// are what is left.
pub(crate) fn read_command_with_words<T: Default>(
    flags: &[Flag<T>],
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<(T, Arguments), FlagError> {
    let (mut settings, mut all, mut rest) = (T::default(), Arguments::default(), arguments);
    loop {
        let Arguments { given, ignored, .. } = parse_arguments(flags, rest, &mut settings)?;
        all.given.extend(given);
        let mut ignored = ignored.into_iter();
        let Some(word) = ignored.next() else { break };
        all.ignored.push(word);
        rest = ignored.map(OsString::from).collect();
    }
    apply_environment(flags, &mut all, environment, &mut settings)?;
    Ok((settings, all))
}

/// A flag as people are told of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Described {
    /// The name, without dashes.
    pub(crate) name: &'static str,
    /// The word for what it takes; empty if that is nothing.
    pub(crate) word: &'static str,
    /// The value if it is not given; none if that is empty, zero or false.
    pub(crate) default: Option<String>,
    /// What it is for.
    pub(crate) description: &'static str,
    /// The environment variable that is looked at if it is not given.
    pub(crate) variable: Option<String>,
}

/// Describes every flag, in the order of the table, with the defaults of the settings.
pub(crate) fn describe<T: Default>(flags: &[Flag<T>]) -> Vec<Described> {
    let mut defaults = T::default();
    let described = flags.iter().map(|flag| {
        let (word, default) = type_and_default(&flag.kind, &mut defaults);
        let Flag { name, description, .. } = *flag;
        let variable = Some(environment_variable(name)).filter(|_| name != WITHOUT_VARIABLE);
        Described { name, word, default, description, variable }
    });
    described.collect()
}

/// The type word of a flag and its default, if that is not empty, zero or false.
fn type_and_default<T>(kind: &Kind<T>, defaults: &mut T) -> (&'static str, Option<String>) {
    match kind {
        Kind::Bool(field) => ("", Some("true".to_owned()).filter(|_| *field(defaults))),
        Kind::Int(field) => ("int", Some(field(defaults).to_string()).filter(|number| number != "0")),
        Kind::OptionalInt(_) => ("int", None),
        Kind::Duration(field) => ("duration", Some(go_duration::duration(*field(defaults)))),
        Kind::Text(field) => {
            ("string", Some(field(defaults)).filter(|text| !text.is_empty()).map(|text| quote(text)))
        }
        Kind::List(_) => ("value", None),
    }
}

/// The usage text of `program`: the flags in alphabetical order, each with its type and default.
pub(crate) fn usage(program: &str, flags: &[Described]) -> String {
    let mut rows: Vec<&Described> = flags.iter().collect();
    rows.sort_by_key(|flag| flag.name);
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for Described { name, word, default, description, .. } in rows {
        let blank = if word.is_empty() { "" } else { " " };
        let head = format!("  -{name}{blank}{word}");
        // Go keeps a flag of one letter that takes no value on one line.
        let gap = if head.len() <= 4 { "\t" } else { "\n    \t" };
        let default = default.as_ref().map_or_else(String::new, |value| format!(" (default {value})"));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{head}{gap}{description}{default}");
    }
    text
}

#[cfg(test)]
mod tests;
