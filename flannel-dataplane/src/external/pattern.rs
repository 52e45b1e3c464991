//! Regular expressions that match interfaces.

use std::fmt;
use std::str::FromStr;

use regex_lite::Regex;

/// A regular expression that matches the addresses or the name of an interface. Not anchored, unless it contains `^` and
/// `$`.
#[derive(Clone)]
pub struct InterfacePattern(Regex);

impl InterfacePattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    ///
    /// [`PatternError`] if it is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        Regex::new(pattern).map(Self).map_err(|error| PatternError {
            pattern: pattern.to_owned(),
            reason: error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
        })
    }

    /// Returns the pattern as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl FromStr for InterfacePattern {
    type Err = PatternError;

    fn from_str(pattern: &str) -> Result<Self, PatternError> {
        Self::new(pattern)
    }
}

impl fmt::Debug for InterfacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl Eq for InterfacePattern {}

impl PartialEq for InterfacePattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// A pattern that is not a regular expression.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("could not compile the IP address regex '{}': {reason}", pattern.escape_debug())]
pub struct PatternError {
    pattern: String,
    reason: String,
}
