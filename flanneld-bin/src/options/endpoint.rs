//! The addresses of etcd servers.

use std::net::Ipv6Addr;

use crate::go_syntax::quote;

/// Splits a list at its commas into URLs of the form `scheme://host[:port]`; blanks and empty elements
/// are dropped, a missing scheme is `scheme`. The error names the element and what is wrong with it.
pub(super) fn parse_list(list: &str, scheme: &str) -> Result<Vec<String>, String> {
    let elements = list.split(',').map(str::trim).filter(|element| !element.is_empty());
    let endpoints: Vec<String> = elements.map(|element| parse(element, scheme)).collect::<Result<_, _>>()?;
    if endpoints.is_empty() { Err(format!("no endpoint in {}", quote(list))) } else { Ok(endpoints) }
}

/// Checks one endpoint and gives it its scheme.
fn parse(element: &str, scheme: &str) -> Result<String, String> {
    let (scheme, rest) = match element.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => (scheme.to_owned(), element),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let bad = |why: &str| Err(format!("{}: {why}", quote(element)));
    if authority.contains('@') {
        // Not quoted: what stands before the @ may be a password.
        return Err("an endpoint must not contain a user name or password".to_owned());
    }
    if scheme != "http" && scheme != "https" {
        return bad("the scheme must be http or https");
    }
    if authority.contains(['/', '?', '#']) {
        return bad("an endpoint has no path");
    }
    let Some((host, port)) = host_and_port(authority) else {
        return bad("the brackets do not enclose an IPv6 address");
    };
    if !is_host(host) {
        return bad("the host is missing or not a name or address (an IPv6 address needs brackets)");
    }
    if port.is_some_and(|port| !is_port(port)) {
        return bad("the port must be a number from 1 to 65535");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// Splits `host:port` or `[v6]:port`; the host keeps its brackets. None if brackets are misused.
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

/// Whether `host` can be a host name, an IPv4 address or a bracketed IPv6 address (already checked).
fn is_host(host: &str) -> bool {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    host.starts_with('[') || (!host.is_empty() && host.chars().all(part_of_name))
}

/// Whether `port` is a TCP port; only digits, where `parse` would also take a sign.
fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_is_completed_with_its_scheme() {
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
    fn what_is_no_endpoint_is_named() {
        for (given, why) in [
            ("ftp://h", "scheme"),
            ("://h", "scheme"),
            ("http://", "host"),
            (":2379", "host"),
            ("http:/h:1", "no path"),
            ("http://a b", "host"),
            ("http://h/v2/keys", "no path"),
            ("http://h?x", "no path"),
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
    fn a_password_in_an_endpoint_is_not_repeated() {
        let error = parse_list("http://h,https://root:secret@h:1", "http").expect_err("has a user");
        assert!(!error.contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_brings_the_reader_down_and_what_it_accepts_it_accepts_again(
            text in "((https?|ftp)?://)?[\\[a-z0-9:.\\]@é]{0,20}/?|.*"
        ) {
            for endpoint in parse_list(&text, "http").unwrap_or_default() {
                prop_assert_eq!(parse(&endpoint, "http"), Ok(endpoint));
            }
        }
    }
}
