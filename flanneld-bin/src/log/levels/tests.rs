use super::*;

#[test]
fn a_star_matches_any_text_and_a_question_mark_one_character() {
    for (pattern, name) in [
        ("iface", "iface"),
        ("i*", "iface"),
        ("*", ""),
        ("*face", "iface"),
        ("i?ace", "iface"),
        ("*a*a*", "banana"),
        ("b*na", "banana"),
        ("**", "x"),
    ] {
        assert!(matches(pattern, name), "{pattern} {name}");
    }
    for (pattern, name) in
        [("iface", "ifaces"), ("if?", "iface"), ("", "x"), ("*x", "banana"), ("b*b", "banana"), ("?", "")]
    {
        assert!(!matches(pattern, name), "{pattern} {name}");
    }
    assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
}

#[test]
fn a_list_is_parsed_as_glog_parses_it() {
    let module = |pattern: &str, verbosity| ModuleLevel { pattern: pattern.to_owned(), verbosity };
    let list = ModuleLevel::parse_list("iface=4,,n*=0x1,");
    assert_eq!(list, Ok(vec![module("iface", 4), module("n*", 1)]));
    assert_eq!(ModuleLevel::parse_list(""), Ok(vec![]));
    for bad in ["iface", "iface=", "=1", "iface=x", "a=1,iface=-1"] {
        assert!(ModuleLevel::parse_list(bad).is_err_and(|why| why.contains("filename=N")), "{bad}");
    }
}
