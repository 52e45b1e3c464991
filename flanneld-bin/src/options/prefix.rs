//! The key in etcd under which a network lives.

use crate::go_syntax::quote;

/// Cleans a prefix as upstream does before it appends `/config` or `/subnets`: repeated slashes, a
/// trailing slash, `.` and `..` vanish (Go's `path.Clean`). A missing leading slash is not added, because
/// in etcd v3 `a/b` and `/a/b` are different keys. The root is the empty text.
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
        // Its keys would be a bare `config` and `subnets`, which `<prefix>/config` cannot express.
        (false, true) => Err(format!("no key in {}", quote(prefix))),
        (false, false) => Ok(elements.join("/")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_cleaned_like_a_path() {
        for (given, cleaned) in [
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
            assert_eq!(clean(given), Ok(cleaned.to_owned()), "{given}");
        }
        for nothing in ["", ".", "a/.."] {
            assert!(clean(nothing).is_err(), "{nothing}");
        }
    }
}
