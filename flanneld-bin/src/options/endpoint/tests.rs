use proptest::prelude::*;

use super::*;

#[test]
fn a_missing_scheme_is_added() {
    for (given, endpoint) in [
        ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
        ("https://192.168.8.26:2379/", "https://192.168.8.26:2379"),
        ("HTTPS://etcd-1.example", "https://etcd-1.example"),
        ("127.0.0.1:2379", "http://127.0.0.1:2379"),
        ("etcd", "http://etcd"),
        ("[fd00::1]:2379", "http://[fd00::1]:2379"),
        ("http://[::1]", "http://[::1]"),
    ] {
        assert_eq!(parse(given, "http"), Ok(endpoint.to_owned()), "{given}");
    }
}

#[test]
fn an_invalid_endpoint_is_named_in_the_error() {
    for (given, why) in [
        ("ftp://h", "scheme"),
        ("://h", "scheme"),
        ("http://", "host"),
        (":2379", "host"),
        ("http:/h:1", "path"),
        ("http://a b", "host"),
        ("http://h/v2/keys", "path"),
        ("http://h?x", "path"),
        ("fd00::1", "port"),
        ("h:", "port"),
        ("h:0", "port"),
        ("h:65536", "port"),
        ("h:+1", "port"),
        ("h:1:2", "port"),
        ("[fd00::1", "brackets"),
        ("[1.2.3.4]:1", "brackets"),
        ("[::1]x", "brackets"),
        ("h\n:1", "host"),
    ] {
        let error = parse(given, "http").expect_err(given);
        assert!(error.starts_with(&quote(given)) && error.contains(why), "{error}");
    }
}

#[test]
fn an_error_does_not_contain_a_password() {
    let error = parse_list("http://h,https://root:secret@h:1", "http").expect_err("has a user");
    assert!(!error.contains("secret"), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_and_its_output_parses_to_itself(
        text in "((https?|ftp)?://)?[\\[a-z0-9:.\\]@é]{0,20}/?|.*"
    ) {
        for endpoint in parse_list(&text, "http").unwrap_or_default() {
            prop_assert_eq!(parse(&endpoint, "http"), Ok(endpoint));
        }
    }
}
