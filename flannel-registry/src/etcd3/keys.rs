//! Keys and records of one network. Pure.

use etcd_client::KeyValue;
use flannel_core::{BadRecord, Lease, RegistryEvent, Revision, SubnetKey, Term, read_record, read_removal};

use super::lease_id::is_release;
use crate::etcd::KeyLayout;

/// The keys of a network, and how to read their values.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    layout: KeyLayout,
}

impl Keys {
    /// Derives the keys from a prefix.
    pub(super) fn new(prefix: &str) -> Self {
        Self { layout: KeyLayout::new(prefix) }
    }

    /// Returns the key of the network config.
    pub(super) fn config(&self) -> &str {
        self.layout.config()
    }

    /// See [`KeyLayout::misplaced_config`].
    pub(super) fn misplaced_config(&self) -> Option<(&str, &str)> {
        self.layout.misplaced_config()
    }

    /// Returns the prefix of all lease keys, with its trailing slash.
    pub(super) fn subnets(&self) -> &str {
        self.layout.subnets()
    }

    /// Returns the first key after all lease keys.
    pub(super) fn subnets_end(&self) -> Vec<u8> {
        // `0` follows `/`, the last byte of the prefix.
        let mut end = self.subnets().as_bytes().to_vec();
        end.pop();
        end.push(b'/' + 1);
        end
    }

    /// Returns the key of a lease.
    pub(super) fn subnet(&self, subnet: &SubnetKey) -> String {
        self.layout.subnet(subnet)
    }

    /// Parses a record.
    pub(super) fn read(&self, record: &KeyValue) -> Result<Lease, BadRecord> {
        let term = match record.lease() {
            0 => Term::Permanent,
            _ => Term::Limited,
        };
        read_record(&self.name(record.key()), record.value(), revision(record), term)
    }

    /// Parses a change. For a removed record etcd sends only key and revision, and version zero.
    pub(super) fn read_change(&self, record: &KeyValue) -> RegistryEvent {
        if record.version() == 0 {
            return read_removal(&self.name(record.key()), revision(record));
        }
        match self.read(record) {
            Ok(lease) if is_release(record.lease()) => RegistryEvent::Released(lease.subnet, lease.revision),
            Ok(lease) => RegistryEvent::Put(lease.into()),
            Err(bad) => RegistryEvent::Bad(bad),
        }
    }

    /// Returns the part of a key after the prefix. Bytes that are not UTF-8 are escaped, so different keys have
    /// different names.
    fn name(&self, key: &[u8]) -> String {
        let name = key.strip_prefix(self.subnets().as_bytes()).unwrap_or(key);
        match std::str::from_utf8(name) {
            Ok(name) => name.to_owned(),
            Err(_) => name.escape_ascii().to_string(),
        }
    }
}

/// Returns the revision at which a record last changed.
pub(super) fn revision(record: &KeyValue) -> Revision {
    Revision(unsigned(record.mod_revision()))
}

/// Converts a revision, which is signed on the wire and never negative.
pub(super) fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_all_leases_ends_after_the_slash() {
        assert_eq!(Keys::new("/coreos.com/network").subnets_end(), b"/coreos.com/network/subnets0");
    }

    #[test]
    fn the_name_is_the_part_after_the_slash() {
        let keys = Keys::new("/n");
        assert_eq!(keys.name(b"/n/subnets/10.5.1.0-24"), "10.5.1.0-24");
        assert_eq!(keys.name(b"/n/subnets/"), "");
        assert_eq!(keys.name(b"/n/subnets/\xff"), "\\xff");
    }
}
