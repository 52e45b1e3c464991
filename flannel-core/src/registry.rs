//! The interface to a store of leases.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};

use crate::lease::{Lease, LeaseAttrs, Revision, Term};
use crate::subnet::SubnetKey;

/// The cause of an error, of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A store of leases that all hosts of a network share.
///
/// Implementations use [`#[async_trait]`](macro@crate::async_trait): without it an `async fn` in the `impl` block doesn't
/// compile. Each implementation keeps the following promises, which the contract suite in `flannel-testing` checks by
/// number:
///
/// 1. **Linearizable.** Each call sees all writes that completed before it started.
/// 2. **Exclusive creation.** Of several `create` calls for one subnet exactly one succeeds; the others fail with
///    [`RegistryError::Exists`].
/// 3. **Compare-and-swap.** `update`, `renew` and `delete` change a record only if it still has the given revision.
///    Otherwise they change nothing and fail with [`RegistryError::Changed`], or with [`RegistryError::Gone`] if there is no
///    record.
/// 4. **Revisions increase.** Each write gives the record a larger revision than any before.
/// 5. **Leases expire.** A record of [`Term::Limited`] that isn't renewed within its TTL disappears, and watches report it.
///    A record of [`Term::Permanent`] stays.
/// 6. **Renewals are silent.** `renew` changes neither the record nor its revision, and watches don't report it.
/// 7. **A watch is complete.** Applied in order to the state at its start, its events add up to the state of the store. It
///    may repeat events and never omits one. If it doesn't know what it missed, it yields a [`RegistryEvent::Snapshot`].
/// 8. **A watch never ends.** It reconnects, and yields [`RegistryEvent::Unavailable`] while it tries.
/// 9. **Malformed records are set aside.** A malformed record hides no other record, in a list or a watch.
/// 10. **Cost.** A list takes a number of calls that doesn't depend on who wrote the records; a watch is one subscription; an
///     event takes no call.
/// 11. **Config changes are noticed.** While a watch is polled, [`config_changes`](Self::config_changes) yields when the
///     configuration was written or removed, or may have been. It may yield without a change.
///
/// All registries write and read records as the same texts:
///
/// ```
/// use flannel_core::{LeaseAttrs, LeaseSet, RegistryEvent, Revision, Term, read_record, read_removal};
///
/// let (key, value) = ("10.5.2.0-24", r#"{"PublicIP":"192.168.64.2","PublicIPv6":null}"#);
/// let mut leases = LeaseSet::default();
/// let event = match read_record(key, value.as_bytes(), Revision(7), Term::Limited) {
///     Ok(lease) => RegistryEvent::Put(lease.into()),
///     Err(bad) => RegistryEvent::Bad(bad),
/// };
/// leases.apply(event);
/// assert_eq!(leases.leases().next().unwrap().attrs.to_record(), value);
/// leases.apply(read_removal(key, Revision(8)));
/// assert_eq!(leases.leases().count(), 0);
/// ```
///
/// The example `own_registry` in the repository is a complete implementation.
#[async_trait]
pub trait SubnetRegistry: Send + Sync + 'static {
    /// Names the store for logs and status, such as `etcd v3 at http://127.0.0.1:2379`, without secrets.
    fn describe(&self) -> String;

    /// Returns the command by which an operator writes the network configuration, such as
    /// `etcdctl put /coreos.com/network/config '{...}'`. Error messages about a missing or invalid configuration contain it.
    fn how_to_configure(&self) -> String;

    /// Returns what is known so far about the identity of the store.
    fn store(&self) -> StoreIdentity {
        StoreIdentity::default()
    }

    /// Returns the time of the last response or event, if it is known.
    fn last_contact(&self) -> Option<LastContact> {
        None
    }

    /// Reads the text of the network configuration; `None` if no configuration exists yet.
    ///
    /// # Errors
    ///
    /// Only [`RegistryError::Unavailable`] and [`RegistryError::Refused`].
    async fn config(&self) -> Result<Option<String>, RegistryError>;

    /// Reads all leases.
    ///
    /// # Errors
    ///
    /// As for [`config`](Self::config).
    async fn list(&self) -> Result<Snapshot, RegistryError>;

    /// Creates a lease of a free subnet. It expires after `ttl` unless renewed.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Exists`] if the subnet is taken; [`RegistryError::Unknown`] if the store didn't confirm the write.
    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError>;

    /// Replaces the attributes of a lease that still has the revision of `lease`. A limited lease gets a new `ttl`; a
    /// permanent one stays permanent.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Changed`], [`RegistryError::Gone`] or [`RegistryError::Unknown`].
    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError>;

    /// Extends a limited lease, that still has the revision of `lease`, by `ttl` from now. A permanent one stays permanent.
    /// Returns the TTL that the store granted.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Changed`] or [`RegistryError::Gone`].
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError>;

    /// Deletes a lease that still has the revision of `lease`.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Changed`], [`RegistryError::Gone`] or [`RegistryError::Unknown`].
    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError>;

    /// Follows all changes after a revision, or from a snapshot if none is given. The stream never ends; dropping it ends
    /// the subscription.
    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent>;

    /// Yields `()` whenever the configuration may have changed since this call; the caller re-reads it. The stream never
    /// ends. By default it never yields anything, and hosts notice a change when they are asked to
    /// [reload](crate::Network::reload).
    fn config_changes(&self) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }

    /// Notes that addresses of this host changed, so that existing connections may be dead and a request over one may wait
    /// for its timeout. A store without connections ignores it.
    fn reconnect(&self) {}
}

#[async_trait]
impl<R: SubnetRegistry + ?Sized> SubnetRegistry for Arc<R> {
    fn describe(&self) -> String {
        (**self).describe()
    }

    fn how_to_configure(&self) -> String {
        (**self).how_to_configure()
    }

    fn store(&self) -> StoreIdentity {
        (**self).store()
    }

    fn last_contact(&self) -> Option<LastContact> {
        (**self).last_contact()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        (**self).config().await
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        (**self).list().await
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        (**self).create(subnet, attrs, ttl).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        (**self).update(lease, attrs, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        (**self).renew(lease, ttl).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        (**self).delete(lease).await
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        (**self).watch(after)
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        (**self).config_changes()
    }

    fn reconnect(&self) {
        (**self).reconnect();
    }
}

/// The identity of a store, by which a host recognizes it after a restart.
///
/// ```
/// use flannel_core::StoreIdentity;
///
/// let store = |id: &str, address: &str| StoreIdentity::new(Some(id.into()), vec![address.into()]);
/// let known = store("1", "http://10.0.0.1:2379");
/// assert!(!store("2", "http://10.0.0.1:2379").is_other_than(&known), "it may have been restored from a backup");
/// assert!(!store("1", "http://10.0.0.9:2379").is_other_than(&known), "its members may have moved");
/// assert!(store("2", "http://10.0.0.9:2379").is_other_than(&known));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreIdentity {
    /// The ID that the store reports, such as that of an etcd cluster. Unknown until the first response.
    pub id: Option<String>,
    /// The configured addresses.
    pub addresses: Vec<String>,
}

impl StoreIdentity {
    /// Creates an identity.
    #[must_use]
    pub fn new(id: Option<String>, addresses: Vec<String>) -> Self {
        Self { id, addresses }
    }

    /// Returns true if the stores certainly differ: both IDs are known, and neither the ID nor any address matches. A store
    /// that was restored from a backup may have another ID, and one that moved has other addresses.
    #[must_use]
    pub fn is_other_than(&self, known: &Self) -> bool {
        let have_ids = self.id.is_some() && known.id.is_some();
        let shares = |address| known.addresses.contains(address);
        have_ids && self.id != known.id && !self.addresses.iter().any(shares)
    }
}

/// The last response or event from a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastContact {
    /// The time of the response or event.
    pub at: Instant,
    /// The largest revision received so far.
    pub revision: Option<Revision>,
}

impl LastContact {
    /// Creates a contact at this time.
    #[must_use]
    pub fn new(at: Instant, revision: Option<Revision>) -> Self {
        Self { at, revision }
    }
}

/// All leases at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The store's revision at that moment.
    pub revision: Revision,
    /// The leases. Copies of the snapshot share them.
    pub leases: Vec<Arc<Lease>>,
    /// The malformed records.
    pub bad: Vec<BadRecord>,
}

impl Snapshot {
    /// Creates a snapshot without records.
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self { revision, leases: Vec::new(), bad: Vec::new() }
    }
}

/// An event of a watch. The enum is exhaustive, because each consumer must handle each event.
#[derive(Clone, Debug)]
pub enum RegistryEvent {
    /// The whole state; a lease that isn't in it doesn't exist.
    Snapshot(Snapshot),
    /// A lease was written.
    Put(Arc<Lease>),
    /// A lease expired, or was deleted and the store can't tell which; or a malformed record with the key of a subnet was
    /// deleted.
    Deleted(SubnetKey, Revision),
    /// A lease was deleted explicitly: its host released it, or an operator removed it.
    Released(SubnetKey, Revision),
    /// A malformed record was written.
    Bad(BadRecord),
    /// A malformed record whose key isn't that of a subnet was deleted.
    BadDeleted(String),
    /// The store doesn't respond, for this reason; the watch retries. The state hasn't changed as far as is known.
    Unavailable(String),
    /// The store responds again.
    Available,
}

/// A malformed record, which is ignored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BadRecord {
    /// The key, relative to the directory of the leases.
    pub key: String,
    /// The subnet, if the key is readable. It counts as taken.
    #[serde(rename = "subnets")]
    pub subnet: Option<SubnetKey>,
    /// The fault.
    pub reason: String,
}

impl BadRecord {
    /// Creates a malformed record. The subnet is that of the key, if the key is readable.
    #[must_use]
    pub fn new(key: impl Into<String>, subnet: Option<SubnetKey>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), subnet, reason: reason.into() }
    }
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {:?}: {}", self.key, self.reason)
    }
}

impl std::error::Error for BadRecord {}

/// Reads a record, as each registry must.
///
/// The key must be in canonical form. Another spelling of the same subnet, or the same key in a subdirectory, would be a
/// second record of the subnet.
///
/// # Errors
///
/// [`BadRecord`] if the key or the value is malformed.
pub fn read_record(key: &str, value: &[u8], revision: Revision, term: Term) -> Result<Lease, BadRecord> {
    let bad = |subnet, reason: String| BadRecord::new(key, subnet, reason);
    let subnet = read_key(key).map_err(|reason| bad(None, reason))?;
    let value = std::str::from_utf8(value).map_err(|error| bad(Some(subnet), error.to_string()))?;
    let attrs = LeaseAttrs::from_record(value).map_err(|error| bad(Some(subnet), error.to_string()))?;
    Ok(Lease { subnet, attrs, revision, term })
}

/// Returns the event of a record that expired, or that was deleted for an unknown reason.
#[must_use]
pub fn read_removal(key: &str, revision: Revision) -> RegistryEvent {
    removal(key, |subnet| RegistryEvent::Deleted(subnet, revision))
}

/// Returns the event of a record that was deleted explicitly.
#[must_use]
pub fn read_release(key: &str, revision: Revision) -> RegistryEvent {
    removal(key, |subnet| RegistryEvent::Released(subnet, revision))
}

fn removal(key: &str, event: impl FnOnce(SubnetKey) -> RegistryEvent) -> RegistryEvent {
    read_key(key).map_or_else(|_| RegistryEvent::BadDeleted(key.to_owned()), event)
}

fn read_key(key: &str) -> Result<SubnetKey, String> {
    let subnet: SubnetKey = key.parse().map_err(|error| format!("{error}"))?;
    let canonical = subnet.to_string();
    if canonical == key { Ok(subnet) } else { Err(format!("{key:?} is not a subnet key: want {canonical}")) }
}

/// The reasons why a call to a registry fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Another host leased this subnet first; choose a different one.
    #[error("subnet {0} is already leased")]
    Exists(SubnetKey),
    /// The record changed since it was read; read it again and decide anew.
    #[error("another writer changed the lease of {0}")]
    Changed(SubnetKey),
    /// The record no longer exists; the lease is lost.
    #[error("the lease of {0} is gone")]
    Gone(SubnetKey),
    /// The store may or may not have written; read the record before retrying.
    #[error("no answer to a write of {0}; it may have been applied")]
    Unknown(SubnetKey, #[source] BoxError),
    /// The store didn't respond and wrote nothing; the same call may succeed later.
    #[error("{0} does not answer")]
    Unavailable(String, #[source] BoxError),
    /// The store refused the call; an operator must act.
    #[error("{0} refused the request")]
    Refused(String, #[source] BoxError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &[u8] = br#"{"PublicIP":"1.2.3.4"}"#;

    #[test]
    fn a_record_is_a_lease_only_under_the_canonical_key() {
        let read = |key: &str| read_record(key, RECORD, Revision(1), Term::Limited);
        assert!(read("10.5.1.0-24&fc00:0:0:1::-64").is_ok());
        for key in ["old/10.5.1.0-24", "10.5.1.0-024", "10.5.1.0-24&fc00:0:0:1:0::-64", "garbage"] {
            assert_eq!(read(key).unwrap_err().subnet, None, "{key}");
            let removal = read_removal(key, Revision(2));
            assert!(matches!(removal, RegistryEvent::BadDeleted(gone) if gone == key));
        }
    }

    #[test]
    fn a_malformed_record_with_a_readable_key_names_its_subnet() {
        for value in [b"{".as_slice(), b"", b"\xff", br#"{"PublicIP":""}"#] {
            let bad = read_record("10.5.1.0-24", value, Revision(1), Term::Limited).unwrap_err();
            assert_eq!(bad.subnet, Some("10.5.1.0-24".parse().unwrap()));
        }
        let removal = read_removal("10.5.1.0-24", Revision(2));
        assert!(matches!(removal, RegistryEvent::Deleted(_, Revision(2))));
        let release = read_release("10.5.1.0-24", Revision(3));
        assert!(matches!(release, RegistryEvent::Released(_, Revision(3))));
    }
}
