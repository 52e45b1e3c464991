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
        "", "-", "+", "--1", "+-1", "abc", "1s", " 1", "1 ", "1.0", "1e3", "08", "0b2", "0o8", "0x", "0xg",
        "0b", "_1", "1_", "1__0", "0x1_", "0__7", "0_", "٣", "é", "0é",
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
