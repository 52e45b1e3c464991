//! The keys of one network. Pure.

use flannel_core::SubnetKey;

/// The keys of one network.
#[derive(Clone, Debug)]
pub(crate) struct KeyLayout {
    config: String,
    subnets: String,
}

impl KeyLayout {
    /// Derives the keys from a prefix. As in upstream flannel, empty components, `.` and `..` are resolved, and a leading
    /// slash is kept but never added: `a/b` and `/a/b` are different networks.
    pub(crate) fn new(prefix: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in prefix.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        let root = if prefix.starts_with('/') { "/" } else { "" };
        let below = |name| [&parts[..], &[name]].concat().join("/");
        Self { config: format!("{root}{}", below("config")), subnets: format!("{root}{}/", below("subnets")) }
    }

    /// Returns the key of the network config.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }

    /// Returns the key of the prefix itself, under which a config may have been stored by mistake, and the prefix for which
    /// that would be the right key.
    pub(crate) fn misplaced_config(&self) -> Option<(&str, &str)> {
        let prefix = self.config.strip_suffix("/config")?;
        Some((prefix, prefix.strip_suffix("/config").unwrap_or_default()))
    }

    /// Returns the prefix of all lease keys, with its trailing slash.
    pub(crate) fn subnets(&self) -> &str {
        &self.subnets
    }

    /// Returns the key of a lease.
    pub(crate) fn subnet(&self, subnet: &SubnetKey) -> String {
        format!("{}{subnet}", self.subnets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_upstream_flannel() {
        let keys = KeyLayout::new("/coreos.com/network");
        assert_eq!(keys.config(), "/coreos.com/network/config");
        let subnet = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
        assert_eq!(keys.subnet(&subnet), "/coreos.com/network/subnets/10.5.1.0-24&fc00:0:0:1::-64");
    }

    #[test]
    fn a_config_under_the_prefix_itself_has_another_prefix() {
        let misplaced = |prefix: &str| {
            KeyLayout::new(prefix).misplaced_config().map(|(key, to)| (key.to_owned(), to.to_owned()))
        };
        assert_eq!(misplaced("/n/config"), Some(("/n/config".to_owned(), "/n".to_owned())));
        assert_eq!(misplaced("/n"), Some(("/n".to_owned(), String::new())));
        assert_eq!(misplaced(""), None);
    }

    #[test]
    fn prefixes_are_normalised_without_adding_a_leading_slash() {
        for (prefix, config) in [
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("a/b", "a/b/config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(KeyLayout::new(prefix).config(), config, "{prefix:?}");
        }
    }
}
