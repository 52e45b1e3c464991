//! Command-line flags and environment variables with the syntax of Go's `flag` package (<https://pkg.go.dev/flag>), which
//! upstream's users, units and scripts rely on.
//!
//! 1. A table of [`Flag`]s maps each flag to a field of a settings struct.
//! 2. [`parse_arguments`] applies the arguments; the last occurrence wins, and lists collect.
//! 3. [`apply_environment`] applies `FLANNELD_*` to every flag that is not among the arguments.
//! 4. [`describe`] lists the flags with the defaults of the settings; [`usage`] formats them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use crate::go_duration;
use crate::go_syntax::{parse_bool, parse_int, quote};

/// The prefix of the environment variables.
const ENVIRONMENT_PREFIX: &str = "FLANNELD_";

/// The flag without a variable: with one, a unit could print the version and succeed.
const WITHOUT_VARIABLE: &str = "version";

/// One flag of a command whose settings are a `T`.
pub(crate) struct Flag<T: 'static> {
    /// The name, without dashes.
    pub(crate) name: &'static str,
    /// The type of its value, and the field.
    pub(crate) kind: Kind<T>,
    /// The help text.
    pub(crate) description: &'static str,
}

impl<T> Clone for Flag<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Flag<T> {}

/// The type of a flag's value, with the field that it sets.
pub(crate) enum Kind<T> {
    /// True or false; `-name` alone means true.
    Bool(fn(&mut T) -> &mut bool),
    /// An integer.
    Int(fn(&mut T) -> &mut i64),
    /// An integer without a default.
    OptionalInt(fn(&mut T) -> &mut Option<i64>),
    /// A duration, such as `24h` or `1h30m`.
    Duration(fn(&mut T) -> &mut Duration),
    /// Any text.
    Text(fn(&mut T) -> &mut String),
    /// Any text, collected from every occurrence.
    List(fn(&mut T) -> &mut Vec<String>),
}

// Derives would require `T: Clone`.
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

/// Why the flags are invalid, or that help was requested.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum FlagError {
    /// `-h` or `-help` was given: print the usage text and succeed.
    #[error("help requested")]
    Help,
    /// The syntax is wrong: print this line, then the usage text.
    #[error("{0}")]
    Syntax(String),
    /// A value is invalid: print this line alone.
    #[error("{0}")]
    InvalidValue(String),
}

/// Which flags were given, and the remaining arguments.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Arguments {
    /// The flags among the arguments, which the environment does not change.
    given: BTreeSet<&'static str>,
    /// The flags that a variable set.
    from_environment: BTreeSet<&'static str>,
    /// The arguments after the last flag.
    pub(crate) ignored: Vec<String>,
}

/// The arguments after the last flag, without their text, which may contain a password.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct IgnoredArguments {
    /// The number of arguments, except empty ones, which a unit makes of an unset variable.
    pub(crate) count: usize,
    /// The flags among them.
    pub(crate) flags: Vec<&'static str>,
}

impl IgnoredArguments {
    /// Summarises `arguments`.
    pub(crate) fn new<T>(flags: &[Flag<T>], arguments: &[String]) -> Self {
        let flag_name = |argument: &String| {
            let name = argument.trim_start_matches('-').split('=').next()?;
            let flag = flags.iter().find(|flag| flag.name == name)?;
            argument.starts_with('-').then_some(flag.name)
        };
        let count = arguments.iter().filter(|argument| !argument.is_empty()).count();
        Self { count, flags: arguments.iter().filter_map(flag_name).collect() }
    }
}

impl Arguments {
    /// Whether no flags but these were set, by arguments or variables.
    pub(crate) fn has_only(&self, flags: &[&str]) -> bool {
        self.given.iter().chain(&self.from_environment).all(|name| flags.contains(name))
    }

    /// Returns the error for an invalid value, which names its source: the flag or the variable.
    pub(crate) fn invalid(&self, bad: &BadValue) -> FlagError {
        let BadValue { flag, why } = bad;
        if self.from_environment.contains(flag) {
            FlagError::InvalidValue(format!("{}: {why}", environment_variable(flag)))
        } else {
            FlagError::InvalidValue(format!("flag -{flag}: {why}"))
        }
    }
}

/// An invalid value.
#[derive(Debug)]
pub(crate) struct BadValue {
    /// The name of the flag.
    pub(crate) flag: &'static str,
    /// The reason.
    pub(crate) why: String,
}

/// Applies `arguments`, without the program's name, to `settings`.
pub(crate) fn parse_arguments<T>(
    flags: &[Flag<T>],
    arguments: impl IntoIterator<Item = OsString>,
    settings: &mut T,
) -> Result<Arguments, FlagError> {
    let mut arguments = unicode(arguments)?.into_iter();
    let mut given = BTreeSet::new();
    while let Some(argument) = arguments.next() {
        let Some(word) = flag_word(&argument)? else {
            // `--` ends the flags; any other argument that is no flag is the first ignored one.
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

/// Converts the arguments to strings. The error names an argument by its number, because it may be a password.
fn unicode(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<String>, FlagError> {
    let to_string = |(number, argument): (usize, OsString)| {
        let bad = |_| FlagError::InvalidValue(format!("argument {} is not valid UTF-8", number + 1));
        argument.into_string().map_err(bad)
    };
    arguments.into_iter().enumerate().map(to_string).collect()
}

/// The text of a flag after its dashes; `None` if `argument` is no flag and so ends the flags.
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

/// Finds a flag by its name.
fn find<'f, T>(flags: &'f [Flag<T>], name: &str) -> Result<&'f Flag<T>, FlagError> {
    match flags.iter().find(|flag| flag.name == name) {
        Some(flag) => Ok(flag),
        None if name == "h" || name == "help" => Err(FlagError::Help),
        None => Err(FlagError::Syntax(format!("flag provided but not defined: -{name}"))),
    }
}

/// Sets `flag` to `value` or, without one, to `true` or to the next argument.
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

/// Applies the environment, read through `lookup`, to every flag that is not among the arguments.
///
/// An empty variable counts as unset. A variable is one occurrence of its flag, also of a list.
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
            .map_err(|_| FlagError::InvalidValue(format!("the value of {variable} is not valid UTF-8")))?;
        flag.kind.store(settings, &value).map_err(|why| {
            FlagError::InvalidValue(format!("invalid value {} for {variable}: {why}", quote(&value)))
        })?;
        arguments.from_environment.insert(flag.name);
    }
    Ok(())
}

/// The environment variable of the flag `name`.
fn environment_variable(name: &str) -> String {
    format!("{ENVIRONMENT_PREFIX}{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Parses the arguments and variables of a subcommand that takes flags only.
pub(crate) fn read_command<T: Default>(
    flags: &[Flag<T>],
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<(T, Arguments), FlagError> {
    let mut settings = T::default();
    let mut arguments = parse_arguments(flags, arguments, &mut settings)?;
    // Unlike the daemon, which ignores them: `--dry-run` may be among them.
    if let Some(argument) = arguments.ignored.first() {
        return Err(FlagError::InvalidValue(format!("unexpected argument {argument:?}")));
    }
    apply_environment(flags, &mut arguments, environment, &mut settings)?;
    Ok((settings, arguments))
}

/// Parses the arguments and variables of a subcommand that takes operands, too, before, between and after its flags. They
/// are returned in `ignored`.
pub(crate) fn read_command_with_operands<T: Default>(
    flags: &[Flag<T>],
    arguments: Vec<OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<(T, Arguments), FlagError> {
    let (mut settings, mut all, mut rest) = (T::default(), Arguments::default(), arguments);
    loop {
        let Arguments { given, ignored, .. } = parse_arguments(flags, rest, &mut settings)?;
        all.given.extend(given);
        let mut ignored = ignored.into_iter();
        let Some(operand) = ignored.next() else { break };
        all.ignored.push(operand);
        rest = ignored.map(OsString::from).collect();
    }
    apply_environment(flags, &mut all, environment, &mut settings)?;
    Ok((settings, all))
}

/// A flag, for help texts and manuals.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlagDescription {
    /// The name, without dashes.
    pub name: &'static str,
    /// The type of its value; empty for a boolean.
    pub value: &'static str,
    /// The default, unless it is empty, zero or false.
    pub default: Option<String>,
    /// The help text.
    pub description: &'static str,
    /// The environment variable that sets it.
    pub variable: Option<String>,
}

/// Describes the flags in the order of the table, with the defaults of the settings.
pub(crate) fn describe<T: Default>(flags: &[Flag<T>]) -> Vec<FlagDescription> {
    let mut defaults = T::default();
    let descriptions = flags.iter().map(|flag| {
        let (value, default) = type_and_default(&flag.kind, &mut defaults);
        let Flag { name, description, .. } = *flag;
        let variable = Some(environment_variable(name)).filter(|_| name != WITHOUT_VARIABLE);
        FlagDescription { name, value, default, description, variable }
    });
    descriptions.collect()
}

/// The type of a flag's value, and its default unless that is empty, zero or false.
fn type_and_default<T>(kind: &Kind<T>, defaults: &mut T) -> (&'static str, Option<String>) {
    match kind {
        Kind::Bool(field) => ("", Some("true".to_owned()).filter(|_| *field(defaults))),
        Kind::Int(field) => ("int", Some(field(defaults).to_string()).filter(|number| number != "0")),
        Kind::OptionalInt(_) => ("int", None),
        Kind::Duration(field) => ("duration", Some(go_duration::format(*field(defaults)))),
        Kind::Text(field) => {
            ("string", Some(field(defaults)).filter(|text| !text.is_empty()).map(|text| quote(text)))
        }
        Kind::List(_) => ("value", None),
    }
}

/// Returns the usage text of `program`: the flags in alphabetical order, with types and defaults.
pub(crate) fn usage(program: &str, flags: &[FlagDescription]) -> String {
    let mut rows: Vec<&FlagDescription> = flags.iter().collect();
    rows.sort_by_key(|flag| flag.name);
    let mut text = format!("Usage: {program} [OPTION]...\n");
    for FlagDescription { name, value, default, description, .. } in rows {
        let blank = if value.is_empty() { "" } else { " " };
        let head = format!("  -{name}{blank}{value}");
        // Go prints a boolean flag of one letter and its description on one line.
        let gap = if head.len() <= 4 { "\t" } else { "\n    \t" };
        let default = default.as_ref().map_or_else(String::new, |default| format!(" (default {default})"));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{head}{gap}{description}{default}");
    }
    text
}

#[cfg(test)]
mod tests;
