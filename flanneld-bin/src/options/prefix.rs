//! The etcd key under which a network is stored.

use crate::go_syntax::quote;

/// Normalises a prefix as upstream does before it appends `/config` or `/subnets`: removes repeated and trailing slashes, `.`
/// and `..` (Go's `path.Clean`). Adds no leading slash, because `a/b` and `/a/b` are different keys in etcd v3. Returns an
/// empty string for the root.
pub(super) fn clean(prefix: &str) -> Result<String, String> {
    let rooted = prefix.starts_with('/');
    let mut elements: Vec<&str> = Vec::new();
    for element in prefix.split('/') {
        match element {
            "" | "." => {}
            ".." if elements.last().is_some_and(|last| *last != "..") => drop(elements.pop()),
            ".." if rooted => {}
            other => elements.push(other),
        }
    }
    match (rooted, elements.is_empty()) {
        (true, true) => Ok(String::new()),
        (true, false) => Ok(format!("/{}", elements.join("/"))),
        // The keys would be `config` and `subnets`, without the slash of `<prefix>/config`.
        (false, true) => Err(format!("no key in {}", quote(prefix))),
        (false, false) => Ok(elements.join("/")),
    }
}

#[cfg(test)]
mod tests;
