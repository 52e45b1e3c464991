//! Keys and records of one network. Pure.

use flannel_core::{
    BadRecord, Lease, RegistryEvent, Revision, SubnetKey, read_record, read_release, read_removal,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::response::{KeyResponse, Node, is_release, is_removal};
use super::revisions::Revisions;
use crate::etcd::KeyLayout;

/// Escapes all but the unreserved characters (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Escapes as [`ESCAPED`], but not the slash.
const ESCAPED_IN_PATH: &AsciiSet = &ESCAPED.remove(b'/');

/// The keys of a network, and how to read their values.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    layout: KeyLayout,
}

/// The meaning of a watch event.
#[derive(Debug)]
pub(super) enum KeyChange {
    /// These registry events.
    Events(Vec<RegistryEvent>),
    /// A directory was removed; etcd does not list its entries.
    DirectoryRemoved,
}

impl Keys {
    /// Derives the keys from a prefix. In this interface every key begins with a slash.
    pub(super) fn new(prefix: &str) -> Self {
        Self { layout: KeyLayout::new(&format!("/{prefix}")) }
    }

    /// Returns the key of the network config.
    pub(super) fn config(&self) -> &str {
        self.layout.config()
    }

    /// Returns the key of the directory of the leases.
    pub(super) fn subnets(&self) -> &str {
        self.layout.subnets().trim_end_matches('/')
    }

    /// Returns the key of the directory of the config and the leases.
    pub(super) fn network(&self) -> &str {
        let network = self.layout.config().rsplit_once('/').map_or("", |(network, _)| network);
        if network.is_empty() { "/" } else { network }
    }

    /// Returns the key of a lease.
    pub(super) fn subnet(&self, subnet: &SubnetKey) -> String {
        self.layout.subnet(subnet)
    }

    /// Parses all leases of their directory, and sorts them by subnet.
    pub(super) fn read_all(
        &self,
        directory: &Node<'_>,
        revisions: &mut Revisions,
    ) -> (Vec<Lease>, Vec<BadRecord>) {
        let versioned =
            |lease: Lease, node: &Node<'_>| Lease { revision: revisions.observe_read(&lease, node), ..lease };
        let (mut leases, bad) = self.records(directory, versioned);
        leases.sort_by_key(|lease| lease.subnet);
        (leases, bad)
    }

    /// Parses all records of the leases' directory, unsorted.
    ///
    /// Records in subdirectories are reported as bad. So is a subdirectory with the name of a subnet, because it keeps
    /// hosts from leasing that subnet.
    pub(super) fn records<T>(
        &self,
        directory: &Node<'_>,
        mut map: impl FnMut(Lease, &Node<'_>) -> T,
    ) -> (Vec<T>, Vec<BadRecord>) {
        let (mut leases, mut bad) = (Vec::new(), Vec::new());
        let mut open = directory.nodes.clone();
        while let Some(text) = open.pop() {
            let node: Node<'_> = match serde_json::from_str(text.get()) {
                Ok(node) => node,
                Err(error) => {
                    let reason = format!("invalid response of etcd: {error}");
                    bad.push(BadRecord::new("", None, reason));
                    continue;
                }
            };
            let name = self.name(&node.key);
            if node.dir {
                bad.extend(misplaced_directory(name));
                open.extend(node.nodes);
                continue;
            }
            match read_node(name, &node) {
                Ok(lease) => leases.push(map(lease, &node)),
                Err(record) => bad.push(record),
            }
        }
        bad.sort();
        (leases, bad)
    }

    /// Parses a watch event.
    pub(super) fn read_change(&self, response: &KeyResponse<'_>, revisions: &mut Revisions) -> KeyChange {
        let node = &response.node;
        if node.dir && is_removal(&response.action) && self.is_about_leases(&node.key) {
            return KeyChange::DirectoryRemoved;
        }
        let Some(name) = node.key.strip_prefix(self.layout.subnets()) else {
            // The config, a key of another network, or the creation of the directory. Its removal is handled above.
            return KeyChange::Events(Vec::new());
        };
        let revision = Revision(node.modified_index);
        if is_removal(&response.action) {
            let event = match is_release(&response.action) {
                true => read_release(name, revision),
                false => read_removal(name, revision),
            };
            if let RegistryEvent::Deleted(subnet, _) | RegistryEvent::Released(subnet, _) = event {
                revisions.remove(&subnet, revision);
            }
            return KeyChange::Events(vec![event]);
        }
        // Writing below a name turns it into a directory, for which etcd sends no event.
        let directory = if node.dir { name } else { name.split_once('/').map_or("", |(first, _)| first) };
        let mut events: Vec<_> = misplaced_directory(directory).map(RegistryEvent::Bad).into_iter().collect();
        if !node.dir {
            events.push(match read_node(name, node) {
                Ok(lease) => RegistryEvent::Put(
                    Lease { revision: revisions.observe_write(&lease, node), ..lease }.into(),
                ),
                Err(record) => RegistryEvent::Bad(record),
            });
        }
        KeyChange::Events(events)
    }

    /// Reports whether a directory contains leases, or is among them.
    fn is_about_leases(&self, directory: &str) -> bool {
        let leases = self.layout.subnets();
        let holds = leases
            .strip_prefix(directory)
            .is_some_and(|below| directory.is_empty() || below.starts_with('/'));
        holds || directory.starts_with(leases)
    }

    /// Returns the part of a key after the leases' directory.
    fn name<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(self.layout.subnets()).unwrap_or(key)
    }
}

/// Parses a record, at etcd's index.
pub(super) fn read_node(name: &str, node: &Node<'_>) -> Result<Lease, BadRecord> {
    read_record(name, node.value.as_bytes(), Revision(node.modified_index), node.term())
}

/// Returns a bad record if a directory has the name of a subnet.
fn misplaced_directory(name: &str) -> Option<BadRecord> {
    let subnet = name.parse::<SubnetKey>().ok().filter(|subnet| subnet.to_string() == name)?;
    let reason = "a directory is in place of a record".to_owned();
    Some(BadRecord::new(name, Some(subnet), reason))
}

/// Formats a key as the path of a URL.
pub(super) fn path(key: &str) -> String {
    format!("/v2/keys{}", utf8_percent_encode(key, ESCAPED_IN_PATH))
}

/// Escapes a value for a form.
pub(super) fn form_value(value: &str) -> String {
    utf8_percent_encode(value, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(name: &str, value: &str, index: u64) -> String {
        let value = serde_json::Value::from(value);
        format!(
            r#"{{"key":"/n/subnets/{name}","value":{value},"ttl":5,"modifiedIndex":{index},"createdIndex":{index}}}"#
        )
    }

    fn directory(name: &str, nodes: &[String]) -> String {
        format!(r#"{{"key":"/n/subnets{name}","dir":true,"nodes":[{}],"modifiedIndex":4}}"#, nodes.join(","))
    }

    const RECORD: &str = r#"{"PublicIP":"1.2.3.4"}"#;

    #[test]
    fn every_key_begins_with_a_slash() {
        assert_eq!(Keys::new("a/b").config(), "/a/b/config");
        assert_eq!(Keys::new("/a/b/").subnets(), "/a/b/subnets");
        assert_eq!(path("/a b/10.5.1.0-24&fc00::-64"), "/v2/keys/a%20b/10.5.1.0-24%26fc00%3A%3A-64");
        assert_eq!(form_value("{\"a\":\"=&+\"}"), "%7B%22a%22%3A%22%3D%26%2B%22%7D");
    }

    #[test]
    fn records_in_nested_directories_are_reported() {
        let mut deep = leaf("x/10.5.1.0-24", RECORD, 5);
        for _ in 0..500 {
            deep = directory("/x", &[deep]);
        }
        let nodes = [
            deep,
            directory("/10.5.3.0-24", &[leaf("10.5.3.0-24/x", RECORD, 6)]),
            directory("/empty", &[]),
            leaf("10.5.4.0-24", "", 8),
            leaf("10.5.6.0-24", RECORD, 7),
            leaf("10.5.2.0-24", RECORD, 9),
        ];
        let all = directory("", &nodes);
        let all = serde_json::from_str(&all).unwrap();
        let (leases, bad) = Keys::new("/n").read_all(&all, &mut Revisions::default());
        assert_eq!(leases.iter().map(|lease| lease.revision.0).collect::<Vec<_>>(), [9, 7]);
        let names: Vec<_> = bad.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(names, ["10.5.3.0-24", "10.5.3.0-24/x", "10.5.4.0-24", "x/10.5.1.0-24"]);
    }

    fn change(action: &str, node: &str) -> KeyChange {
        let text = format!(r#"{{"action":"{action}","node":{node}}}"#);
        let response = serde_json::from_str(&text).unwrap();
        Keys::new("/n").read_change(&response, &mut Revisions::default())
    }

    fn change_text(action: &str, node: &str) -> String {
        match change(action, node) {
            KeyChange::Events(events) => format!("{events:?}"),
            KeyChange::DirectoryRemoved => "gone".to_owned(),
        }
    }

    #[test]
    fn every_action_that_is_no_removal_is_a_write() {
        for action in ["create", "set", "update", "compareAndSwap", "whatever"] {
            assert!(change_text(action, &leaf("10.5.2.0-24", RECORD, 7)).starts_with("[Put("), "{action}");
        }
        // Only hosts compare when they delete.
        let removals = [("delete", "[Deleted("), ("expire", "[Deleted("), ("compareAndDelete", "[Released(")];
        for (action, event) in removals {
            assert!(change_text(action, &leaf("10.5.2.0-24", "", 7)).starts_with(event), "{action}");
            assert_eq!(change_text(action, &directory("/x", &[])), "gone", "{action}");
        }
    }

    #[test]
    fn a_record_below_a_name_shows_that_the_name_is_a_directory() {
        let events = change_text("set", &leaf("10.5.2.0-24/x", RECORD, 7));
        assert_eq!(events.matches("Bad(").count(), 2, "{events}");
        assert_eq!(change_text("set", &directory("/10.5.2.0-24", &[])).matches("Bad(").count(), 1);
        assert_eq!(change_text("set", &directory("/other", &[])), "[]");
        assert_eq!(change_text("set", &directory("", &[])), "[]");
    }
}
