//! The names of the keys of one network. Pure.

use flannel_core::SubnetKey;

/// Where a network keeps its keys.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    config: String,
    subnets: String,
}

impl Names {
    /// Puts the keys together below a prefix. As in flannel, empty parts, `.` and `..` are resolved, and a leading
    /// slash is kept but never added: `a/b` and `/a/b` are two networks.
    pub(crate) fn below(prefix: &str) -> Self {
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

    /// The key of the network's configuration.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }

    /// The beginning of all keys of leases, with the slash at its end.
    pub(crate) fn subnets(&self) -> &str {
        &self.subnets
    }

    /// The key of one lease.
    pub(crate) fn subnet(&self, subnet: &SubnetKey) -> String {
        format!("{}{subnet}", self.subnets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_flannel() {
        let names = Names::below("/coreos.com/network");
        assert_eq!(names.config(), "/coreos.com/network/config");
        let subnet = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
        assert_eq!(names.subnet(&subnet), "/coreos.com/network/subnets/10.5.1.0-24&fc00:0:0:1::-64");
    }

    #[test]
    fn prefixes_are_cleaned_and_a_leading_slash_is_not_added() {
        for (prefix, config) in [
            ("/coreos.com//network/", "/coreos.com/network/config"),
            ("a/b", "a/b/config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(Names::below(prefix).config(), config, "{prefix:?}");
        }
    }
}
