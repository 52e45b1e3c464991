//! The keys of one network, and what is kept under them. Pure.

use flannel_core::{BadRecord, Lease, RegistryEvent, Revision, SubnetKey, read_record, read_removal};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::answer::{Node, Told, is_removal};
use super::revisions::Revisions;
use crate::etcd::Names;

/// What stands for itself in a path and in a form (RFC 3986, section 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// In a path, the slash does too.
const ESCAPED_IN_PATH: &AsciiSet = &ESCAPED.remove(b'/');

/// Where a network keeps its keys, and how they are read.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    names: Names,
}

/// What an event means.
#[derive(Debug)]
pub(super) enum Change {
    /// These events.
    Told(Vec<RegistryEvent>),
    /// A directory is gone, and what was in it is not told.
    DirectoryGone,
}

impl Keys {
    /// Puts the keys together below a prefix. In this interface every key begins with a slash.
    pub(super) fn below(prefix: &str) -> Self {
        Self { names: Names::below(&format!("/{prefix}")) }
    }

    /// The key of the network's configuration.
    pub(super) fn config(&self) -> &str {
        self.names.config()
    }

    /// The key of the directory that holds all leases.
    pub(super) fn subnets(&self) -> &str {
        self.names.subnets().trim_end_matches('/')
    }

    /// The key of the directory that holds the configuration and all leases.
    pub(super) fn network(&self) -> &str {
        let network = self.names.config().rsplit_once('/').map_or("", |(network, _)| network);
        if network.is_empty() { "/" } else { network }
    }

    /// The key of one lease.
    pub(super) fn subnet(&self, subnet: &SubnetKey) -> String {
        self.names.subnet(subnet)
    }

    /// Reads all leases of the directory that holds them, and puts them in order, which etcd does not.
    pub(super) fn read_all(
        &self,
        directory: &Node<'_>,
        revisions: &mut Revisions,
    ) -> (Vec<Lease>, Vec<BadRecord>) {
        let told = |lease: Lease, node: &Node<'_>| Lease { revision: revisions.read(&lease, node), ..lease };
        let (mut leases, bad) = self.records(directory, told);
        leases.sort_by_key(|lease| lease.subnet);
        (leases, bad)
    }

    /// Reads all records of the directory that holds them, in any order.
    ///
    /// Directories are not records: what is in one is named, and hidden from nobody. One that has the name of a subnet
    /// keeps everybody from leasing it, so it is named too.
    pub(super) fn records<T>(
        &self,
        directory: &Node<'_>,
        mut take: impl FnMut(Lease, &Node<'_>) -> T,
    ) -> (Vec<T>, Vec<BadRecord>) {
        let (mut taken, mut bad) = (Vec::new(), Vec::new());
        let mut open = directory.nodes.clone();
        while let Some(text) = open.pop() {
            let node: Node<'_> = match serde_json::from_str(text.get()) {
                Ok(node) => node,
                Err(error) => {
                    let reason = format!("etcd's answer cannot be read: {error}");
                    bad.push(BadRecord::new("", None, reason));
                    continue;
                }
            };
            let name = self.name(&node.key);
            if node.dir {
                bad.extend(directory_of(name));
                open.extend(node.nodes);
                continue;
            }
            match read_node(name, &node) {
                Ok(lease) => taken.push(take(lease, &node)),
                Err(record) => bad.push(record),
            }
        }
        bad.sort();
        (taken, bad)
    }

    /// Reads one event of a watch.
    pub(super) fn read_change(&self, told: &Told<'_>, revisions: &mut Revisions) -> Change {
        let node = &told.node;
        if node.dir && is_removal(&told.action) && self.is_about_leases(&node.key) {
            return Change::DirectoryGone;
        }
        let Some(name) = node.key.strip_prefix(self.names.subnets()) else {
            // The configuration, another network's, or the directory itself was made; what was removed with all leases is
            // told above.
            return Change::Told(Vec::new());
        };
        let revision = Revision(node.modified_index);
        if is_removal(&told.action) {
            let event = read_removal(name, revision);
            if let RegistryEvent::Deleted(subnet, _) = event {
                revisions.forget(&subnet, revision);
            }
            return Change::Told(vec![event]);
        }
        // To write below a name makes a directory of it, of which etcd does not tell.
        let directory = if node.dir { name } else { name.split_once('/').map_or("", |(first, _)| first) };
        let mut events: Vec<_> = directory_of(directory).map(RegistryEvent::Bad).into_iter().collect();
        if !node.dir {
            events.push(match read_node(name, node) {
                Ok(lease) => {
                    RegistryEvent::Put(Lease { revision: revisions.hear(&lease, node), ..lease }.into())
                }
                Err(record) => RegistryEvent::Bad(record),
            });
        }
        Change::Told(events)
    }

    /// Tells whether a directory holds leases, or is among them.
    fn is_about_leases(&self, directory: &str) -> bool {
        let leases = self.names.subnets();
        let holds = leases
            .strip_prefix(directory)
            .is_some_and(|below| directory.is_empty() || below.starts_with('/'));
        holds || directory.starts_with(leases)
    }

    /// What a key says below the directory that all are in.
    fn name<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(self.names.subnets()).unwrap_or(key)
    }
}

/// Reads one record, at the revision that etcd gives it.
pub(super) fn read_node(name: &str, node: &Node<'_>) -> Result<Lease, BadRecord> {
    read_record(name, node.value.as_bytes(), Revision(node.modified_index), node.term())
}

/// The bad record that a directory is, if it stands where a lease could.
fn directory_of(name: &str) -> Option<BadRecord> {
    let subnet = name.parse::<SubnetKey>().ok().filter(|subnet| subnet.to_string() == name)?;
    let reason = "a directory stands where a record belongs".to_owned();
    Some(BadRecord::new(name, Some(subnet), reason))
}

/// Writes a key as the path of a URL.
pub(super) fn path(key: &str) -> String {
    format!("/v2/keys{}", utf8_percent_encode(key, ESCAPED_IN_PATH))
}

/// Writes a value for a form.
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
    fn a_prefix_always_begins_with_a_slash_here() {
        assert_eq!(Keys::below("a/b").config(), "/a/b/config");
        assert_eq!(Keys::below("/a/b/").subnets(), "/a/b/subnets");
        assert_eq!(path("/a b/10.5.1.0-24&fc00::-64"), "/v2/keys/a%20b/10.5.1.0-24%26fc00%3A%3A-64");
        assert_eq!(form_value("{\"a\":\"=&+\"}"), "%7B%22a%22%3A%22%3D%26%2B%22%7D");
    }

    #[test]
    fn directories_hide_nothing_however_deep_they_are() {
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
        let (leases, bad) = Keys::below("/n").read_all(&all, &mut Revisions::default());
        assert_eq!(leases.iter().map(|lease| lease.revision.0).collect::<Vec<_>>(), [9, 7]);
        let names: Vec<_> = bad.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(names, ["10.5.3.0-24", "10.5.3.0-24/x", "10.5.4.0-24", "x/10.5.1.0-24"]);
    }

    fn change(action: &str, node: &str) -> Change {
        let text = format!(r#"{{"action":"{action}","node":{node}}}"#);
        let told = serde_json::from_str(&text).unwrap();
        Keys::below("/n").read_change(&told, &mut Revisions::default())
    }

    fn told(action: &str, node: &str) -> String {
        match change(action, node) {
            Change::Told(events) => format!("{events:?}"),
            Change::DirectoryGone => "gone".to_owned(),
        }
    }

    #[test]
    fn whatever_is_no_removal_is_a_write() {
        for action in ["create", "set", "update", "compareAndSwap", "whatever"] {
            assert!(told(action, &leaf("10.5.2.0-24", RECORD, 7)).starts_with("[Put("), "{action}");
        }
        for action in ["delete", "expire", "compareAndDelete"] {
            assert!(told(action, &leaf("10.5.2.0-24", "", 7)).starts_with("[Deleted("), "{action}");
            assert_eq!(told(action, &directory("/x", &[])), "gone", "{action}");
        }
    }

    #[test]
    fn a_record_below_a_name_tells_that_the_name_is_a_directory() {
        let events = told("set", &leaf("10.5.2.0-24/x", RECORD, 7));
        assert_eq!(events.matches("Bad(").count(), 2, "{events}");
        assert_eq!(told("set", &directory("/10.5.2.0-24", &[])).matches("Bad(").count(), 1);
        assert_eq!(told("set", &directory("/other", &[])), "[]");
        assert_eq!(told("set", &directory("", &[])), "[]");
    }
}
