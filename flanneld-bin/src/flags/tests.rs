//! Every form of a flag, on a small table of its own.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, Eq, PartialEq)]
struct Settings {
    masq: bool,
    forward: bool,
    port: i64,
    margin: i64,
    file: String,
    prefix: String,
    iface: Vec<String>,
    x: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            masq: false,
            forward: true,
            port: 0,
            margin: 60,
            file: String::new(),
            prefix: "/a \"b\"".to_owned(),
            iface: Vec::new(),
            x: false,
        }
    }
}

const FLAGS: &[Flag<Settings>] = &[
    Flag { name: "masq", kind: Kind::Bool(|s| &mut s.masq), description: "hide" },
    Flag { name: "forward", kind: Kind::Bool(|s| &mut s.forward), description: "let through" },
    Flag { name: "healthz-port", kind: Kind::Int(|s| &mut s.port), description: "listen here" },
    Flag { name: "margin", kind: Kind::Int(|s| &mut s.margin), description: "minutes" },
    Flag { name: "file", kind: Kind::Text(|s| &mut s.file), description: "a path" },
    Flag { name: "prefix", kind: Kind::Text(|s| &mut s.prefix), description: "a key" },
    Flag { name: "iface", kind: Kind::List(|s| &mut s.iface), description: "repeatable" },
    Flag { name: "x", kind: Kind::Bool(|s| &mut s.x), description: "one letter" },
];

fn parse(arguments: &[&str]) -> Result<(Settings, Vec<String>), FlagError> {
    let mut settings = Settings::default();
    let parsed = parse_arguments(FLAGS, arguments.iter().map(OsString::from), &mut settings)?;
    Ok((settings, parsed.ignored))
}

fn parsed(arguments: &[&str]) -> Settings {
    parse(arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}")).0
}

#[test]
fn one_dash_and_two_dashes_and_both_ways_to_give_a_value_mean_the_same() {
    for arguments in [&["-file=/x"][..], &["--file=/x"], &["-file", "/x"], &["--file", "/x"]] {
        assert_eq!(parsed(arguments).file, "/x", "{arguments:?}");
    }
    assert_eq!(parsed(&["-file=a=b"]).file, "a=b", "only the first = separates");
    assert_eq!(parsed(&["-file="]).file, "", "an empty value is a value");
    assert_eq!(parsed(&["-file", "-masq"]).file, "-masq", "a value may begin with a dash");
    assert_eq!(parsed(&["-file", "--"]).file, "--");
}

#[test]
fn a_boolean_takes_a_value_only_after_an_equals_sign() {
    assert!(parsed(&["-masq"]).masq);
    for yes in ["1", "t", "T", "TRUE", "true", "True"] {
        assert!(parsed(&[&format!("-masq={yes}")]).masq, "{yes}");
    }
    for no in ["0", "f", "F", "FALSE", "false", "False"] {
        assert!(!parsed(&["-masq", &format!("-masq={no}")]).masq, "{no}");
    }
    let (settings, ignored) = parse(&["--masq", "true", "-iface", "eth0p"]).expect("no error");
    assert!(settings.masq);
    assert!(settings.iface.is_empty());
    assert_eq!(ignored, ["true", "-iface", "eth0p"]);
}

#[test]
fn the_first_word_that_is_no_flag_ends_the_flags() {
    for (arguments, left) in [
        (&["-x", "--", "-masq"][..], &["-masq"][..]),
        (&["-x", "-", "-masq"], &["-", "-masq"]),
        (&["-x", "word", "-masq"], &["word", "-masq"]),
        (&["-x", "", "-masq"], &["", "-masq"]),
        (&["-x"], &[]),
    ] {
        let (settings, ignored) = parse(arguments).expect("no error");
        assert!(settings.x && !settings.masq, "{arguments:?}");
        assert_eq!(ignored, left, "{arguments:?}");
    }
}

#[test]
fn the_last_occurrence_wins_but_a_list_collects() {
    assert_eq!(parsed(&["-file", "a", "-file=b"]).file, "b");
    assert_eq!(parsed(&["-iface=a,b", "--iface", "c"]).iface, ["a,b", "c"]);
}

#[test]
fn a_wrong_flag_is_named_in_gos_words() {
    for (arguments, line) in [
        (&["-nosuch"][..], "flag provided but not defined: -nosuch"),
        (&["--nosuch=1"], "flag provided but not defined: -nosuch"),
        (&["-healthz-port", "abc"], "invalid value \"abc\" for flag -healthz-port: parse error"),
        (&["-healthz-port="], "invalid value \"\" for flag -healthz-port: parse error"),
        (
            &["-healthz-port", "9223372036854775808"],
            "invalid value \"9223372036854775808\" for flag -healthz-port: value out of range",
        ),
        (&["-masq=maybe"], "invalid boolean value \"maybe\" for -masq: parse error"),
        (&["-masq="], "invalid boolean value \"\" for -masq: parse error"),
        (&["-iface"], "flag needs an argument: -iface"),
        (&["---x"], "bad flag syntax: ---x"),
        (&["-="], "bad flag syntax: -="),
        (&["--=x"], "bad flag syntax: --=x"),
    ] {
        assert_eq!(parse(arguments), Err(FlagError::Syntax(line.to_owned())), "{arguments:?}");
    }
}

#[test]
fn help_is_asked_for_in_six_ways() {
    for argument in ["-h", "-help", "--h", "--help", "-h=1", "--help=x"] {
        assert_eq!(parse(&[argument]), Err(FlagError::Help), "{argument}");
    }
}

#[test]
fn an_argument_that_is_no_text_is_refused() {
    use std::os::unix::ffi::OsStringExt as _;
    let bad = OsString::from_vec(b"-file=\xff".to_vec());
    let error = parse_arguments(FLAGS, [bad], &mut Settings::default()).expect_err("not UTF-8");
    assert_eq!(error.to_string(), "argument 1 is not valid UTF-8");
}

/// Parses no arguments but `given`, with one environment variable set.
fn environment(given: &[&str], variable: &str, value: &str) -> Result<Settings, FlagError> {
    let mut settings = Settings::default();
    let mut arguments = parse_arguments(FLAGS, given.iter().map(OsString::from), &mut settings)?;
    let lookup = |name: &str| (name == variable).then(|| OsString::from(value));
    apply_environment(FLAGS, &mut arguments, lookup, &mut settings).map(|()| settings)
}

#[test]
fn the_environment_speaks_for_flags_that_were_not_given() {
    let port = |given, value| environment(given, "FLANNELD_HEALTHZ_PORT", value).map(|s| s.port);
    assert_eq!(port(&[], "8090"), Ok(8090));
    assert_eq!(port(&["-healthz-port=1"], "8090"), Ok(1));
    assert_eq!(port(&["-healthz-port=0"], "8090"), Ok(0), "given as its default is still given");
    assert_eq!(port(&[], ""), Ok(0), "an empty variable is absent");
    let ifaces = environment(&[], "FLANNELD_IFACE", "a,b").map(|s| s.iface);
    assert_eq!(ifaces, Ok(vec!["a,b".to_owned()]), "one variable is one occurrence");
    assert_eq!(environment(&[], "FLANNELD_NOSUCH", "1"), Ok(Settings::default()));
    assert_eq!(environment(&[], "FLANNEL_FILE", "/x"), Ok(Settings::default()), "no D, not ours");
}

#[test]
fn a_bad_environment_value_names_its_variable() {
    for (variable, value, line) in [
        ("FLANNELD_MASQ", "maybe", "invalid value \"maybe\" for FLANNELD_MASQ: parse error"),
        ("FLANNELD_HEALTHZ_PORT", "a b", "invalid value \"a b\" for FLANNELD_HEALTHZ_PORT: parse error"),
    ] {
        assert_eq!(environment(&[], variable, value), Err(FlagError::InvalidValue(line.to_owned())));
    }
    assert!(environment(&["-masq"], "FLANNELD_MASQ", "maybe").is_ok(), "not looked at when given");
}

#[test]
fn the_usage_text_has_gos_form() {
    let expected = "Usage: ./x [OPTION]...\n  -file string\n    \ta path\n  -forward\n    \tlet through (default true)\n  \
        -healthz-port int\n    \tlisten here\n  -iface value\n    \trepeatable\n  -margin int\n    \tminutes (default 60)\n  \
        -masq\n    \thide\n  -prefix string\n    \ta key (default \"/a \\\"b\\\"\")\n  -x\tone letter\n";
    assert_eq!(usage("./x", &describe(FLAGS)), expected);
}

proptest! {
    #[test]
    fn no_arguments_bring_the_parser_down(arguments in proptest::collection::vec("-{0,3}(x|masq|margin|iface)?=?.{0,5}", 0..5)) {
        let _ = parse_arguments(FLAGS, arguments.iter().map(OsString::from), &mut Settings::default());
    }
}
