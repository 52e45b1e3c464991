//! The keys of one network, and what is kept under them. Pure.

use etcd_client::KeyValue;
use flannel_core::{BadRecord, Lease, RegistryEvent, Revision, SubnetKey, Term, read_record, read_removal};

/// Where a network keeps its keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    config: String,
    subnets: String,
}

impl Keys {
    /// Puts the keys together below a prefix. As in flannel, empty parts, `.` and `..` are resolved, and a leading
    /// slash is kept but never added: `a/b` and `/a/b` are two networks.
    pub(super) fn below(prefix: &str) -> Self {
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
    pub(super) fn config(&self) -> &str {
        &self.config
    }

    /// The beginning of all keys of leases, with the slash at its end.
    pub(super) fn subnets(&self) -> &str {
        &self.subnets
    }

    /// The first key behind all keys of leases.
    pub(super) fn subnets_end(&self) -> Vec<u8> {
        // `0` follows `/`, the last letter of what all these keys begin with.
        let mut end = self.subnets.clone().into_bytes();
        end.pop();
        end.push(b'/' + 1);
        end
    }

    /// The key of one lease.
    pub(super) fn subnet(&self, subnet: &SubnetKey) -> String {
        format!("{}{subnet}", self.subnets)
    }

    /// Reads one record.
    pub(super) fn read(&self, record: &KeyValue) -> Result<Lease, BadRecord> {
        let term = match record.lease() {
            0 => Term::Permanent,
            _ => Term::Limited,
        };
        read_record(&self.name(record.key()), record.value(), revision(record), term)
    }

    /// Reads one change. Of a record that was removed etcd tells the key and the revision; its version is zero.
    pub(super) fn read_change(&self, record: &KeyValue) -> RegistryEvent {
        if record.version() == 0 {
            return read_removal(&self.name(record.key()), revision(record));
        }
        match self.read(record) {
            Ok(lease) => RegistryEvent::Put(lease),
            Err(bad) => RegistryEvent::Bad(bad),
        }
    }

    /// What a key says below the beginning that all have. Bytes that are no text are escaped, so that two different
    /// keys never have one name.
    fn name(&self, key: &[u8]) -> String {
        let name = key.strip_prefix(self.subnets.as_bytes()).unwrap_or(key);
        match std::str::from_utf8(name) {
            Ok(name) => name.to_owned(),
            Err(_) => name.escape_ascii().to_string(),
        }
    }
}

/// When a record was last changed.
pub(super) fn revision(record: &KeyValue) -> Revision {
    Revision(unsigned(record.mod_revision()))
}

/// etcd's revisions are signed on the wire and never negative.
pub(super) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_flannel() {
        let keys = Keys::below("/coreos.com/network");
        assert_eq!(keys.config(), "/coreos.com/network/config");
        let subnet = "10.5.1.0-24&fc00:0:0:1::-64".parse().unwrap();
        assert_eq!(keys.subnet(&subnet), "/coreos.com/network/subnets/10.5.1.0-24&fc00:0:0:1::-64");
        assert_eq!(keys.subnets_end(), b"/coreos.com/network/subnets0");
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
            assert_eq!(Keys::below(prefix).config(), config, "{prefix:?}");
        }
    }

    #[test]
    fn a_name_is_what_follows_the_slash() {
        let keys = Keys::below("/n");
        assert_eq!(keys.name(b"/n/subnets/10.5.1.0-24"), "10.5.1.0-24");
        assert_eq!(keys.name(b"/n/subnets/"), "");
        assert_eq!(keys.name(b"/n/subnets/\xff"), "\\xff");
    }
}
