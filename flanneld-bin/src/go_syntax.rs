//! Flag values as Go's `strconv` package parses and quotes them (<https://pkg.go.dev/strconv>: `ParseBool`, `ParseInt` with
//! base 0, `Quote`).

use std::fmt::Write as _;

/// Parses a boolean; `None` if `text` is not one of Go's twelve spellings.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Parses an integer: decimal, `0x`, `0o` (or `0`) and `0b`, with single underscores between digits.
///
/// The error is the reason as Go's `flag` package words it.
pub(crate) fn parse_int(text: &str) -> Result<i64, &'static str> {
    const SYNTAX: &str = "parse error";
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = radix_and_digits(magnitude);
    let mut value: i128 = 0;
    // The zero of a base prefix counts as a digit, so an underscore may follow it.
    let mut after_digit = digits.len() < magnitude.len();
    if digits.is_empty() && !after_digit {
        return Err(SYNTAX);
    }
    for c in digits.chars() {
        if c == '_' && after_digit {
            after_digit = false;
            continue;
        }
        let digit = c.to_digit(radix).ok_or(SYNTAX)?;
        // Saturating keeps a number of any length out of range without overflowing.
        value = value.saturating_mul(i128::from(radix)).saturating_add(i128::from(digit));
        after_digit = true;
    }
    if !after_digit {
        return Err(SYNTAX);
    }
    i64::try_from(if negative { -value } else { value }).map_err(|_| "value out of range")
}

/// Splits the prefix of the base from the digits.
fn radix_and_digits(magnitude: &str) -> (u32, &str) {
    let lowercase = |n: usize| magnitude.get(..n).map(str::to_ascii_lowercase);
    let prefix = if magnitude.len() > 2 { lowercase(2) } else { None };
    match prefix.as_deref() {
        Some("0x") => (16, &magnitude[2..]),
        Some("0o") => (8, &magnitude[2..]),
        Some("0b") => (2, &magnitude[2..]),
        _ if magnitude.starts_with('0') => (8, &magnitude[1..]),
        _ => (10, magnitude),
    }
}

/// Quotes `text` and escapes everything that does not print, so that it stays on one line.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            ' ' => quoted.push(c),
            // Writing to a string cannot fail.
            _ if c.is_ascii_control() => drop(write!(quoted, "\\x{:02x}", u32::from(c))),
            _ if c.is_control() || c.is_whitespace() => drop(write!(quoted, "\\u{:04x}", u32::from(c))),
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests;
