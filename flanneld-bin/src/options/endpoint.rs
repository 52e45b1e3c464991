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
mod tests;
