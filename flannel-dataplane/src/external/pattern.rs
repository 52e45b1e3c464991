//! A regular expression for interfaces.

use std::fmt;

use regex_lite::Regex;

/// A value of `-iface-regex`: it fits where it is found, unless it says `^` and `$`.
#[derive(Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Reads one. The error is one line, with the pattern in it, in flannel's words.
    pub fn new(text: &str) -> Result<Self, String> {
        Regex::new(text).map(Self).map_err(|error| {
            let why = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            format!("could not compile the IP address regex '{}': {why}", text.escape_debug())
        })
    }

    pub(crate) fn fits(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl Eq for Pattern {}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}
