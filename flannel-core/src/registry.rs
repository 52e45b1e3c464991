//! The seam to a store of leases.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};

use crate::{Lease, LeaseAttrs, Revision, SubnetKey, Term};

/// The cause of an error, whatever its type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One store of leases, shared by all hosts of a network.
///
/// Every implementation keeps these promises; the contract suite in `flannel-testing` checks each by its number.
///
/// 1. **Linearizable.** Every call sees all writes that were answered before it began.
/// 2. **Create is exclusive.** Of several `create` calls for one subnet exactly one succeeds, the others get
///    [`RegistryError::Exists`].
/// 3. **Writes compare.** `update`, `renew` and `delete` change a record only if its revision is still the one given;
///    otherwise they get [`RegistryError::Changed`], or [`RegistryError::Gone`] if there is no record, and nothing is
///    changed.
/// 4. **Revisions grow.** Each write gives the record a larger revision than any before it.
/// 5. **Leases end.** A record of [`Term::Limited`] that is not renewed within its time to live disappears, and
///    watchers are told. A record of [`Term::Permanent`] stays.
/// 6. **Renewing is silent.** `renew` changes neither the record nor its revision, and watchers see nothing.
/// 7. **A watch is complete.** Applied in order to the state it starts from, its events give the state of the store;
///    it may repeat, it never omits. Where it cannot tell what it missed, it says [`RegistryEvent::Snapshot`].
/// 8. **A watch never ends.** It reconnects by itself; [`RegistryEvent::Unavailable`] tells that it is trying.
/// 9. **Bad records are set aside.** A record that cannot be read never hides another one, in a list or in a watch.
/// 10. **Cost.** A list is a number of calls that does not depend on who wrote the records; a watch is one
///     subscription; an event costs no call.
/// 11. **Another configuration is noticed.** While a watch is followed, [`config_changes`](Self::config_changes) says so
///     when the configuration was written or removed, or may have been. It may say so without need.
///
/// The records are texts that every registry writes and reads alike, so that one store can follow another:
///
/// ```
/// use flannel_core::{LeaseAttrs, LeaseSet, RegistryEvent, Revision, Term, read_record, read_removal};
///
/// let (key, value) = ("10.5.2.0-24", r#"{"PublicIP":"192.168.64.2","PublicIPv6":null}"#);
/// let mut known = LeaseSet::default();
/// let event = match read_record(key, value.as_bytes(), Revision(7), Term::Limited) {
///     Ok(lease) => RegistryEvent::Put(lease.into()),
///     Err(bad) => RegistryEvent::Bad(bad),
/// };
/// known.apply(event);
/// assert_eq!(known.leases().next().unwrap().attrs.to_record(), value);
/// known.apply(read_removal(key, Revision(8)));
/// assert_eq!(known.leases().count(), 0);
/// ```
///
/// A whole one, over a store of one's own, is `own_registry` among the examples of the repository.
#[async_trait]
pub trait SubnetRegistry: Send + Sync + 'static {
    /// Names the store for logs and status, such as `etcd v3 at http://127.0.0.1:2379`. Holds no secret.
    fn describe(&self) -> String;

    /// Says how an operator writes the network configuration, for the message that it is missing or wrong, such as
    /// `etcdctl put /coreos.com/network/config '{...}'`.
    fn how_to_configure(&self) -> String;

    /// Tells which store this is, as far as is known yet. A registry that cannot tell answers with nothing.
    fn store(&self) -> StoreIdentity {
        StoreIdentity::default()
    }

    /// Tells when the store was last heard, and up to where; nothing if that is not known.
    fn last_contact(&self) -> Option<LastContact> {
        None
    }

    /// Reads the text of the network configuration; `None` if nobody has written one yet.
    ///
    /// # Errors
    ///
    /// [`RegistryError`]; only [`Unavailable`](RegistryError::Unavailable) and
    /// [`Refused`](RegistryError::Refused) occur.
    async fn config(&self) -> Result<Option<String>, RegistryError>;

    /// Reads all leases.
    ///
    /// # Errors
    ///
    /// As [`config`](Self::config).
    async fn list(&self) -> Result<Snapshot, RegistryError>;

    /// Writes a lease for a subnet that nobody holds, to end after `ttl` unless renewed.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Exists`] if somebody holds it;
    /// [`RegistryError::Unknown`] if the store did not say whether it wrote.
    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError>;

    /// Replaces what a lease says, if its revision is still that of `lease`. A limited lease gets a new `ttl`, a
    /// permanent one stays permanent.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Changed`], [`RegistryError::Gone`] or [`RegistryError::Unknown`].
    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError>;

    /// Makes a limited lease last for its time to live from now, if its revision is still that of `lease`. A permanent
    /// one stays permanent.
    ///
    /// Answers with the time to live that the store granted.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Changed`] or [`RegistryError::Gone`].
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError>;

    /// Removes a lease, if its revision is still that of `lease`.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Changed`], [`RegistryError::Gone`] or [`RegistryError::Unknown`].
    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError>;

    /// Follows all changes after a revision, or from a snapshot if none is given. The stream never ends; dropping it
    /// ends the subscription.
    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent>;

    /// Says whenever the configuration may be another one than before this call, and not which: whoever hears it reads
    /// it. The stream never ends. A store that cannot tell never says anything, and its hosts must be asked to look
    /// ([`Network::reload`](crate::Network::reload)).
    fn config_changes(&self) -> BoxStream<'static, ()> {
        stream::pending().boxed()
    }

    /// Says that addresses of this host changed: connections that were made before may be dead, and waiting for an
    /// answer over one may take as long as the store's patience. A store without connections has nothing to do.
    fn reconnect(&self) {}
}

/// A shared registry is a registry.
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

/// Which store a registry is, to know it again after a restart.
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
    /// What the store calls itself, once it has answered, such as the id of an etcd cluster.
    pub id: Option<String>,
    /// Under which addresses it is asked.
    pub addresses: Vec<String>,
}

impl StoreIdentity {
    /// A store that calls itself so, if it has answered, and is asked under these addresses.
    #[must_use]
    pub fn new(id: Option<String>, addresses: Vec<String>) -> Self {
        Self { id, addresses }
    }

    /// Tells whether it is surely another store: both have a name, and neither name nor any address is the same. A store
    /// that was restored from a backup may have another name, and one that moved has other addresses.
    #[must_use]
    pub fn is_other_than(&self, known: &Self) -> bool {
        let is_named = self.id.is_some() && known.id.is_some();
        let shares = |address| known.addresses.contains(address);
        is_named && self.id != known.id && !self.addresses.iter().any(shares)
    }
}

/// When a store was last heard, and up to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastContact {
    /// When it gave any answer or event.
    pub at: Instant,
    /// The largest revision that it told of.
    pub revision: Option<Revision>,
}

impl LastContact {
    /// A store that was heard at this time, and told of this revision, if of any.
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
    /// The leases that could be read. Whoever copies the snapshot shares them.
    pub leases: Vec<Arc<Lease>>,
    /// The records that could not.
    pub bad: Vec<BadRecord>,
}

impl Snapshot {
    /// A store without records, at this revision; the caller adds them.
    #[must_use]
    pub fn new(revision: Revision) -> Self {
        Self { revision, leases: Vec::new(), bad: Vec::new() }
    }
}

/// What a watch tells. The list is complete: whoever follows a watch deals with each case.
#[derive(Clone, Debug)]
pub enum RegistryEvent {
    /// The whole state; what is not in it does not exist.
    Snapshot(Snapshot),
    /// A lease was written.
    Put(Arc<Lease>),
    /// A lease, or a bad record with the key of one, was removed or ran out.
    Deleted(SubnetKey, Revision),
    /// A record was written that cannot be read.
    Bad(BadRecord),
    /// A bad record whose key is not that of a subnet was removed.
    BadDeleted(String),
    /// The store does not answer; the watch goes on trying. Nothing is known to have changed.
    Unavailable(String),
    /// The store answers again.
    Available,
}

/// A record that cannot be read, and is therefore not used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BadRecord {
    /// Its key, below the one that holds all leases.
    pub key: String,
    /// Its subnet, if the key at least can be read: it counts as taken.
    #[serde(rename = "subnets")]
    pub subnet: Option<SubnetKey>,
    /// What is wrong with it.
    pub reason: String,
}

impl BadRecord {
    /// Says what is wrong with the record under a key, and of which subnet it is, if the key can be read.
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

/// Reads one record as every registry does: a readable key and a readable value make a lease.
///
/// A key is readable if it is written as flannel writes it. Any other spelling of the same subnet, or the same key in
/// a directory below, would be a second record for one subnet.
///
/// # Errors
///
/// [`BadRecord`] says which of the two cannot be read.
pub fn read_record(key: &str, value: &[u8], revision: Revision, term: Term) -> Result<Lease, BadRecord> {
    let bad = |subnet, reason: String| BadRecord::new(key, subnet, reason);
    let subnet = read_key(key).map_err(|reason| bad(None, reason))?;
    let value = std::str::from_utf8(value).map_err(|error| bad(Some(subnet), error.to_string()))?;
    let attrs = LeaseAttrs::from_record(value).map_err(|error| bad(Some(subnet), error.to_string()))?;
    Ok(Lease { subnet, attrs, revision, term })
}

/// Tells of a removed record as every registry does: its key decides whether it was a subnet's.
#[must_use]
pub fn read_removal(key: &str, revision: Revision) -> RegistryEvent {
    match read_key(key) {
        Ok(subnet) => RegistryEvent::Deleted(subnet, revision),
        Err(_) => RegistryEvent::BadDeleted(key.to_owned()),
    }
}

fn read_key(key: &str) -> Result<SubnetKey, String> {
    let subnet: SubnetKey = key.parse().map_err(|error| format!("{error}"))?;
    let written = subnet.to_string();
    if written == key { Ok(subnet) } else { Err(format!("{key:?} is not a subnet key: want {written}")) }
}

/// Why a call to a registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Another host leased this subnet first; choose another one.
    #[error("subnet {0} is already leased")]
    Exists(SubnetKey),
    /// The record changed since it was read; read it again and decide anew.
    #[error("the lease of {0} was changed by somebody else")]
    Changed(SubnetKey),
    /// There is no such record any more; the lease is lost.
    #[error("the lease of {0} is gone")]
    Gone(SubnetKey),
    /// The store may or may not have written; read the record before trying again.
    #[error("no answer to a write of {0}, which may have happened")]
    Unknown(SubnetKey, #[source] BoxError),
    /// The store did not answer and nothing was written; the same call may succeed later.
    #[error("{0} does not answer")]
    Unavailable(String, #[source] BoxError),
    /// The store answered that it will not do this; a person must act.
    #[error("{0} refuses")]
    Refused(String, #[source] BoxError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &[u8] = br#"{"PublicIP":"1.2.3.4"}"#;

    #[test]
    fn a_record_is_a_lease_only_under_the_key_that_flannel_writes() {
        let read = |key: &str| read_record(key, RECORD, Revision(1), Term::Limited);
        assert!(read("10.5.1.0-24&fc00:0:0:1::-64").is_ok());
        for key in ["old/10.5.1.0-24", "10.5.1.0-024", "10.5.1.0-24&fc00:0:0:1:0::-64", "garbage"] {
            assert_eq!(read(key).unwrap_err().subnet, None, "{key}");
            let removal = read_removal(key, Revision(2));
            assert!(matches!(removal, RegistryEvent::BadDeleted(gone) if gone == key));
        }
    }

    #[test]
    fn a_subnet_whose_record_cannot_be_read_is_known() {
        for value in [b"{".as_slice(), b"", b"\xff", br#"{"PublicIP":""}"#] {
            let bad = read_record("10.5.1.0-24", value, Revision(1), Term::Limited).unwrap_err();
            assert_eq!(bad.subnet, Some("10.5.1.0-24".parse().unwrap()));
        }
        let removal = read_removal("10.5.1.0-24", Revision(2));
        assert!(matches!(removal, RegistryEvent::Deleted(_, Revision(2))));
    }
}
