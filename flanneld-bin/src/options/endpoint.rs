//! The endpoints of etcd.

use std::net::Ipv6Addr;

use crate::go_syntax::quote;

/// Parses a comma-separated list of endpoints into URLs of the form `scheme://host[:port]`. Ignores blanks and empty
/// elements, and adds `scheme` to elements without one. An error names the element and the reason.
pub(super) fn parse_list(list: &str, scheme: &str) -> Result<Vec<String>, String> {
    let elements = list.split(',').map(str::trim).filter(|element| !element.is_empty());
    let endpoints: Vec<String> = elements.map(|element| parse(element, scheme)).collect::<Result<_, _>>()?;
    if endpoints.is_empty() { Err(format!("no endpoint in {}", quote(list))) } else { Ok(endpoints) }
}

/// Parses one endpoint.
fn parse(element: &str, scheme: &str) -> Result<String, String> {
    let (scheme, rest) = match element.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (scheme.to_owned(), element),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let bad = |why: &str| Err(format!("{}: {why}", quote(element)));
    if authority.contains('@') {
        // The message omits the element, which may contain a password.
        return Err("an endpoint must not contain a user name or password".to_owned());
    }
    if scheme != "http" && scheme != "https" {
        return bad("the scheme must be http or https");
    }
    if authority.contains(['/', '?', '#']) {
        return bad("an endpoint must not have a path");
    }
    let Some((host, port)) = host_and_port(authority) else {
        return bad("the brackets do not enclose an IPv6 address");
    };
    if !is_host(host) {
        return bad("the host must be a name or address (an IPv6 address needs brackets)");
    }
    if port.is_some_and(|port| !is_port(port)) {
        return bad("the port must be a number from 1 to 65535");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// Splits `host:port` or `[v6]:port`; the host keeps its brackets. Returns `None` for invalid brackets.
fn host_and_port(authority: &str) -> Option<(&str, Option<&str>)> {
    let end_of_host = if authority.starts_with('[') {
        let end = authority.find(']')?;
        authority[1..end].parse::<Ipv6Addr>().ok()?;
        end + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end_of_host);
    match rest.strip_prefix(':') {
        Some(port) => Some((host, Some(port))),
        None => rest.is_empty().then_some((host, None)),
    }
}

/// Whether `host` may be a host name, an IPv4 address or an IPv6 address in brackets (checked before).
fn is_host(host: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    host.starts_with('[') || (!host.is_empty() && host.chars().all(part_of_name))
}

/// Whether `port` is a TCP port in digits; `parse` alone would also accept a sign.
fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
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
}
