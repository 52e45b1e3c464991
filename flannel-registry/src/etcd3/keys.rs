//! The keys of one network, and what is kept under them. Pure.

use etcd_client::KeyValue;
use flannel_core::{BadRecord, Lease, RegistryEvent, Revision, SubnetKey, Term, read_record, read_removal};

use crate::etcd::Names;

/// Where a network keeps its keys, and how they are read.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    names: Names,
}

impl Keys {
    /// Puts the keys together below a prefix.
    pub(super) fn below(prefix: &str) -> Self {
        Self { names: Names::below(prefix) }
    }

    /// The key of the network's configuration.
    pub(super) fn config(&self) -> &str {
        self.names.config()
    }

    /// The beginning of all keys of leases, with the slash at its end.
    pub(super) fn subnets(&self) -> &str {
        self.names.subnets()
    }

    /// The first key behind all keys of leases.
    pub(super) fn subnets_end(&self) -> Vec<u8> {
        // `0` follows `/`, the last letter of what all these keys begin with.
        let mut end = self.subnets().as_bytes().to_vec();
        end.pop();
        end.push(b'/' + 1);
        end
    }

    /// The key of one lease.
    pub(super) fn subnet(&self, subnet: &SubnetKey) -> String {
        self.names.subnet(subnet)
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
            Ok(lease) => RegistryEvent::Put(lease.into()),
            Err(bad) => RegistryEvent::Bad(bad),
        }
    }

    /// What a key says below the beginning that all have. Bytes that are no text are escaped, so that two different
    /// keys never have one name.
    fn name(&self, key: &[u8]) -> String {
        let name = key.strip_prefix(self.subnets().as_bytes()).unwrap_or(key);
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
    fn the_range_of_all_leases_ends_behind_the_slash() {
        assert_eq!(Keys::below("/coreos.com/network").subnets_end(), b"/coreos.com/network/subnets0");
    }

    #[test]
    fn a_name_is_what_follows_the_slash() {
        let keys = Keys::below("/n");
        assert_eq!(keys.name(b"/n/subnets/10.5.1.0-24"), "10.5.1.0-24");
        assert_eq!(keys.name(b"/n/subnets/"), "");
        assert_eq!(keys.name(b"/n/subnets/\xff"), "\\xff");
    }
}
