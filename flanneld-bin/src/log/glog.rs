//! Lines in the format of glog.
//!
//! ```text
//! I1121 01:02:03.123456    3068 main.rs:12] message key=value key="value with blanks"
//! ```

use std::fmt;

use serde_json::Value;
use tracing::Level;

use super::Line;

/// A line without its newline.
pub(super) struct Text<'a>(pub(super) &'a Line<'a>);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { level, time, process, source, fields } = self.0;
        let letter = match *level {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            Level::INFO | Level::DEBUG | Level::TRACE => 'I',
        };
        write!(
            f,
            "{letter}{:02}{:02} {:02}:{:02}:{:02}.{:06} {process:7} {source}] ",
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.subsec_nanosecond() / 1000,
        )?;
        write_on_one_line(f, fields.message.trim_end())?;
        for (name, value) in &fields.pairs {
            write!(f, " {name}=")?;
            write_value(f, value)?;
        }
        Ok(())
    }
}

/// Writes `text` with control characters escaped, so that text from the network cannot forge a line.
fn write_on_one_line(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() {
            write!(f, "{}", c.escape_default())?;
        } else {
            write!(f, "{c}")?;
        }
    }
    Ok(())
}

/// Writes the value of a field, quoted if it is empty or contains blanks, quotes or control characters.
fn write_value(f: &mut fmt::Formatter<'_>, value: &Value) -> fmt::Result {
    let Value::String(text) = value else {
        return write!(f, "{value}");
    };
    let needs_quotes = |c: char| c.is_whitespace() || c.is_control() || c == '"';
    if text.is_empty() || text.contains(needs_quotes) { write!(f, "{text:?}") } else { f.write_str(text) }
}
