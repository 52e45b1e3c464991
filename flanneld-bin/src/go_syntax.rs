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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_parsed_in_every_base() {
        for (text, value) in [
            ("0", 0),
            ("-0", 0),
            ("+7", 7),
            ("-7", -7),
            ("8090", 8090),
            ("1_000", 1000),
            ("0x1F", 31),
            ("0XfF", 255),
            ("0x_1f", 31),
            ("010", 8),
            ("0o17", 15),
            ("0O17", 15),
            ("0_7", 7),
            ("0b101", 5),
            ("-0b1_1", -3),
            ("00", 0),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_int(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_integers_are_parse_errors() {
        for text in [
            "", "-", "+", "--1", "+-1", "abc", "1s", " 1", "1 ", "1.0", "1e3", "08", "0b2", "0o8", "0x",
            "0xg", "0b", "_1", "1_", "1__0", "0x1_", "0__7", "0_", "٣", "é", "0é",
        ] {
            assert_eq!(parse_int(text), Err("parse error"), "{text}");
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_out_of_range() {
        let long = "9".repeat(100);
        for text in ["9223372036854775808", "-9223372036854775809", "0x8000000000000000", &long] {
            assert_eq!(parse_int(text), Err("value out of range"), "{text}");
        }
    }

    #[test]
    fn a_quoted_value_stays_on_one_line() {
        for (text, quoted) in [
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("ä€", r#""ä€""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\n\r\t\x07\x08\x0b\x0c", r#""\n\r\t\a\b\v\f""#),
            ("\x1b[2J\x7f\0", r#""\x1b[2J\x7f\x00""#),
            ("\u{85}\u{2028}\u{a0}", r#""\u0085\u2028\u00a0""#),
        ] {
            assert_eq!(quote(text), quoted);
        }
    }

    proptest! {
        #[test]
        fn an_integer_in_any_base_parses_to_itself(number: i64) {
            let (sign, magnitude) = (if number < 0 { "-" } else { "" }, number.unsigned_abs());
            prop_assert_eq!(parse_int(&number.to_string()), Ok(number));
            prop_assert_eq!(parse_int(&format!("{sign}{magnitude:#x}")), Ok(number));
            prop_assert_eq!(parse_int(&format!("{sign}{magnitude:#o}")), Ok(number));
            prop_assert_eq!(parse_int(&format!("{sign}0{magnitude:o}")), Ok(number));
            prop_assert_eq!(parse_int(&format!("{sign}{magnitude:#b}")), Ok(number));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[-+]?0?[xXoObB]?[0-9a-fé_]{0,20}|.*") {
            let _ = parse_int(&text);
        }
    }
}
