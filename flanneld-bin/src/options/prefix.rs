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
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_normalised_like_a_path() {
        for (given, clean_prefix) in [
            ("/coreos.com/network", "/coreos.com/network"),
            ("/kubernetes/network/", "/kubernetes/network"),
            ("//a///b//", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../a", "/a"),
            ("a/b/", "a/b"),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/", ""),
            ("/..", ""),
        ] {
            assert_eq!(clean(given), Ok(clean_prefix.to_owned()), "{given}");
        }
        for empty in ["", ".", "a/.."] {
            assert!(clean(empty).is_err(), "{empty}");
        }
    }
}
