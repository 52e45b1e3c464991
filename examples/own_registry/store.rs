//! A key-value store with a revision counter, compare-and-swap and expiry; here a map.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::{Lease, LeaseAttrs, RegistryError, Revision, Snapshot, Term, read_record};
use tokio::sync::watch;
use tokio::time::Instant;

/// The store; clones share their content.
#[derive(Clone, Default)]
pub(crate) struct Store {
    content: Arc<Mutex<Content>>,
    /// Wakes the watchers.
    pub(crate) changed: Arc<watch::Sender<()>>,
}

#[derive(Default)]
pub(crate) struct Content {
    pub(crate) config: Option<String>,
    pub(crate) revision: Revision,
    pub(crate) records: BTreeMap<String, Record>,
}

pub(crate) struct Record {
    value: Vec<u8>,
    revision: Revision,
    /// The expiry; `None` for a reservation.
    pub(crate) end: Option<Instant>,
}

impl Store {
    /// Locks the content and removes expired records. Hold the lock from comparison to write.
    pub(crate) fn content(&self) -> MutexGuard<'_, Content> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (content.records.len(), Instant::now());
        content.records.retain(|_, record| record.end.is_none_or(|end| now < end));
        content.revision.0 += (before - content.records.len()) as u64;
        content
    }

    /// Returns all leases, and the time of the next expiry.
    pub(crate) fn snapshot(&self) -> (Snapshot, Option<Instant>) {
        let content = self.content();
        let mut snapshot = Snapshot::new(content.revision);
        for (key, Record { value, revision, end }) in &content.records {
            let term = end.map_or(Term::Permanent, |_| Term::Limited);
            match read_record(key, value, *revision, term) {
                Ok(lease) => snapshot.leases.push(lease.into()),
                // Every host sees the error; the other leases remain usable.
                Err(bad) => snapshot.bad.push(bad),
            }
        }
        (snapshot, content.records.values().filter_map(|record| record.end).min())
    }
}

impl Content {
    /// Writes or removes a record.
    pub(crate) fn write(&mut self, key: String, value: Option<Vec<u8>>, end: Option<Instant>) {
        self.revision.0 += 1;
        match value.map(|value| Record { value, revision: self.revision, end }) {
            Some(record) => drop(self.records.insert(key, record)),
            None => drop(self.records.remove(&key)),
        }
    }

    /// Writes a lease.
    pub(crate) fn put(&mut self, lease: Lease, attrs: &LeaseAttrs, end: Option<Instant>) -> Lease {
        self.write(lease.subnet.to_string(), Some(attrs.to_record().into_bytes()), end);
        Lease { attrs: attrs.clone(), revision: self.revision, ..lease }
    }

    /// Returns the record of a lease if its revision is the one that the caller knows.
    pub(crate) fn compare(&mut self, lease: &Lease) -> Result<&mut Record, RegistryError> {
        match self.records.get_mut(&lease.subnet.to_string()) {
            None => Err(RegistryError::Gone(lease.subnet)),
            Some(found) if found.revision != lease.revision => Err(RegistryError::Changed(lease.subnet)),
            Some(found) => Ok(found),
        }
    }
}
