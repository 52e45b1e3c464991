//! Reads and writes of records.
//!
//! A write compares `modifiedIndex`, which a renewal changes, while callers know the revision, which a renewal does not
//! change (see `revisions`). After a failed comparison the record is read; if it was only renewed, the write is repeated
//! with the new index.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
#[cfg(feature = "etcd-v3")]
use flannel_core::BadRecord;
use flannel_core::{
    LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, StoreIdentity,
    SubnetKey, SubnetRegistry, Term,
};
use futures::stream::BoxStream;
use hyper::Method;
use serde::Deserialize;

use super::cluster::{CallError, MemberResponse};
use super::keys::{form_value, path, read_node};
use super::member::ApiRequest;
use super::request_counters::CallKind;
use super::response::{EtcdError, KeyResponse, Node, parse};
use super::store::Store;
use super::watch::watch;
use crate::Etcd2Registry;
use crate::etcd::Position;
#[cfg(feature = "etcd-v3")]
use crate::migration::record::SourceRecord;

/// The number of times that a write is tried because the record was renewed in between. Only one host renews a record,
/// hours apart.
const WRITE_ATTEMPTS: usize = 3;
/// Versions before 2.3 do not support `refresh`, and empty the value.
const OLDEST: (u32, u32) = (2, 3);

#[async_trait]
impl SubnetRegistry for Etcd2Registry {
    fn describe(&self) -> String {
        self.store.describe()
    }

    fn store(&self) -> StoreIdentity {
        StoreIdentity::new(self.store.last_cluster.get(), self.store.cluster.endpoints.urls().to_vec())
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.store.cluster.contact.last()
    }

    fn how_to_configure(&self) -> String {
        let key = self.store.keys.config();
        format!(
            r#"ETCDCTL_API=2 etcdctl set {key} '{{"Network":"10.5.0.0/16","Backend":{{"Type":"vxlan"}}}}'"#
        )
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        let (store, key) = (&*self.store, self.store.keys.config());
        let response = match store.get(key, false).await.map_err(|error| store.unwritten(error))? {
            Ok(response) => response,
            Err(absent) => {
                store.config_revision.set(absent.index);
                return Ok(None);
            }
        };
        let position = response.headers.position(Position::default());
        store.config_revision.set(position.revision);
        store.last_cluster.record(&position);
        let node = store.parse(&response).map_err(|error| store.unwritten(error))?.node;
        if node.dir {
            let reason = format!(
                "{key} is a directory, expected a value; remove it with: \
                 ETCDCTL_API=2 etcdctl rm --recursive {key}"
            );
            return Err(RegistryError::Refused(store.describe(), reason.into()));
        }
        Ok(Some(node.value))
    }

    fn config_changes(&self) -> BoxStream<'static, ()> {
        self.store.config_changes.subscribe()
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        match self.store.list().await {
            Ok((_, snapshot)) => Ok(snapshot),
            Err(error) => Err(self.store.unwritten(error)),
        }
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        let store = &*self.store;
        store.check_version().await?;
        let form = format!("ttl={}&value={}", seconds(ttl), form_value(&attrs.to_record()));
        let request = store.put(&subnet, "prevExist=false".to_owned(), form);
        let response = match store.cluster.call(&request).await {
            Ok(response) => response,
            Err(CallError::Etcd(error, _))
                if error.code == EtcdError::KEY_EXISTS || error.code == EtcdError::NOT_A_FILE =>
            {
                return Err(RegistryError::Exists(subnet));
            }
            Err(error) => return Err(store.uncertain(subnet, error)),
        };
        let node = store.written(subnet, &response)?;
        let revision = store.revisions().record_write(subnet, &node);
        Ok(Lease { subnet, attrs: attrs.clone(), revision, term: Term::Limited })
    }

    /// Replaces a record. A permanent record stays permanent.
    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        let store = &*self.store;
        store.check_version().await?;
        let value = form_value(&attrs.to_record());
        let form = match lease.term {
            Term::Limited => format!("ttl={}&value={value}", seconds(ttl)),
            Term::Permanent => format!("value={value}"),
        };
        let response = store
            .change(lease, |index| store.put(&lease.subnet, format!("prevIndex={index}"), form.clone()))
            .await?;
        let node = store.written(lease.subnet, &response)?;
        let revision = store.revisions().record_write(lease.subnet, &node);
        Ok(Lease { attrs: attrs.clone(), revision, ..lease.clone() })
    }

    /// Sets a new TTL without changing the record otherwise.
    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        let store = &*self.store;
        if lease.term == Term::Permanent {
            let index = store.revisions().index(lease);
            return match store.unchanged(lease).await? {
                Some(current) if current == index => Ok(ttl),
                _ => Err(RegistryError::Changed(lease.subnet)),
            };
        }
        store.check_version().await?;
        let form = format!("ttl={}", seconds(ttl));
        let query = |index| format!("prevExist=true&prevIndex={index}&refresh=true");
        let change = store.change(lease, |index| store.put(&lease.subnet, query(index), form.clone()));
        let response = match change.await {
            // The renewal may have been applied, but the record is unchanged either way.
            Err(RegistryError::Unknown(_, reason)) => {
                return Err(RegistryError::Unavailable(store.describe(), reason));
            }
            response => response?,
        };
        let node = store.written(lease.subnet, &response)?;
        store.revisions().record_renewal(lease, &node);
        Ok(node.ttl.and_then(|ttl| u64::try_from(ttl).ok()).map_or(ttl, Duration::from_secs))
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let store = &*self.store;
        let response = store
            .change(lease, |index| ApiRequest {
                kind: CallKind::Write,
                method: Method::DELETE,
                path: format!("{}?prevIndex={index}", path(&store.keys.subnet(&lease.subnet))),
                form: None,
            })
            .await?;
        let node = store.written(lease.subnet, &response)?;
        store.revisions().remove(&lease.subnet, Revision(node.modified_index));
        Ok(())
    }

    fn reconnect(&self) {
        self.store.cluster.epoch.advance();
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        watch(Arc::clone(&self.store), after)
    }
}

impl Etcd2Registry {
    /// Returns the time at etcd, in whole seconds, and the URL of the member that sent it. Works with any etcd, including
    /// one without the v2 interface. The time is `None` if an intermediary removed it from the response.
    ///
    /// # Errors
    ///
    /// Returns [`RegistryError`] if no member answers.
    pub async fn server_time(&self) -> Result<(Option<SystemTime>, String), RegistryError> {
        let store = &*self.store;
        let response = store.get_version().await.map_err(|error| store.unwritten(error))?;
        Ok((response.headers.date, store.cluster.endpoints.url(response.member).to_owned()))
    }

    /// Reports whether this etcd also has the v3 interface.
    #[cfg(feature = "etcd-v3")]
    pub(crate) async fn has_v3(&self) -> Result<bool, RegistryError> {
        Ok(self.store.version().await? >= (3, 0))
    }

    /// Reads all records as they are stored, with their TTLs, in the order of their subnets.
    #[cfg(feature = "etcd-v3")]
    pub(crate) async fn source_records(&self) -> Result<(Vec<SourceRecord>, Vec<BadRecord>), RegistryError> {
        let store = &*self.store;
        let subnets = store.get(store.keys.subnets(), true).await;
        let Ok(response) = subnets.map_err(|error| store.unwritten(error))? else {
            return Ok((Vec::new(), Vec::new()));
        };
        let source = |lease, node: &Node<'_>| SourceRecord {
            lease,
            record: node.value.clone(),
            // A negative TTL means that the record has expired.
            ttl: node.ttl.map(|ttl| Duration::from_secs(u64::try_from(ttl).unwrap_or_default())),
        };
        let directory = store.directory(&response).map_err(|error| store.unwritten(error))?;
        let (mut records, bad) = store.keys.records(&directory, source);
        records.sort_by_key(|record| record.lease.subnet);
        Ok((records, bad))
    }
}

impl Store {
    /// Reads all leases, and the position of the store.
    pub(super) async fn list(&self) -> Result<(Position, Snapshot), CallError> {
        let response = match self.get(self.keys.subnets(), true).await? {
            Ok(response) => response,
            Err(absent) => {
                self.revisions().retain_listed(&[], absent.index);
                let revision = Revision(absent.index);
                return Ok((Position::after(revision), Snapshot::new(revision)));
            }
        };
        let directory = self.directory(&response)?;
        // Without an index in the headers, the member is at least as far as the directory.
        let position = response.headers.position(Position::after(Revision(directory.modified_index)));
        self.last_cluster.record(&position);
        self.cluster.contact.record_at(position.revision);
        let mut revisions = self.revisions();
        let (leases, bad) = self.keys.read_all(&directory, &mut revisions);
        revisions.retain_listed(&leases, position.revision);
        let mut snapshot = Snapshot::new(Revision(position.revision));
        snapshot.leases = leases.into_iter().map(Arc::new).collect();
        snapshot.bad = bad;
        Ok((position, snapshot))
    }

    fn directory<'a>(&self, response: &'a MemberResponse) -> Result<Node<'a>, CallError> {
        let node = self.parse(response)?.node;
        if node.dir {
            return Ok(node);
        }
        let key = self.keys.subnets();
        let reason =
            format!("{key} is a value, expected a directory; remove it with: ETCDCTL_API=2 etcdctl rm {key}");
        Err(CallError::Refused(reason.into()))
    }

    /// Sends a write that compares the index of a lease.
    async fn change(
        &self,
        lease: &Lease,
        request: impl Fn(u64) -> ApiRequest + Send,
    ) -> Result<MemberResponse, RegistryError> {
        let mut index = self.revisions().index(lease);
        for _ in 0..WRITE_ATTEMPTS {
            let (error, url) = match self.cluster.call(&request(index)).await {
                Ok(response) => return Ok(response),
                Err(CallError::Etcd(error, url)) => (error, url),
                Err(error) => return Err(self.uncertain(lease.subnet, error)),
            };
            match error.code {
                EtcdError::KEY_NOT_FOUND => return Err(RegistryError::Gone(lease.subnet)),
                EtcdError::NOT_A_FILE => return Err(RegistryError::Changed(lease.subnet)),
                EtcdError::COMPARE_FAILED => match self.unchanged(lease).await? {
                    Some(renewed) if renewed != index => index = renewed,
                    _ => return Err(RegistryError::Changed(lease.subnet)),
                },
                _ => return Err(self.uncertain(lease.subnet, CallError::Etcd(error, url))),
            }
        }
        Err(RegistryError::Changed(lease.subnet))
    }

    /// Returns the index of the record of a lease if it is unchanged or only renewed.
    async fn unchanged(&self, lease: &Lease) -> Result<Option<u64>, RegistryError> {
        let response = self.get(&self.keys.subnet(&lease.subnet), false).await;
        let Ok(response) = response.map_err(|error| self.unwritten(error))? else {
            return Err(RegistryError::Gone(lease.subnet));
        };
        let node = self.parse(&response).map_err(|error| self.unwritten(error))?.node;
        if node.dir || read_node(&lease.subnet.to_string(), &node).is_err() {
            return Ok(None);
        }
        Ok(self.revisions().index_if_unchanged(lease, &node))
    }

    /// Reads a key, or everything below it, with a quorum read. The inner error is etcd's "key not found".
    pub(super) async fn get(
        &self,
        key: &str,
        recursive: bool,
    ) -> Result<Result<MemberResponse, EtcdError>, CallError> {
        let request = ApiRequest {
            kind: CallKind::Read,
            method: Method::GET,
            path: format!("{}?quorum=true&recursive={recursive}&sorted=false", path(key)),
            form: None,
        };
        match self.cluster.call(&request).await {
            Ok(response) => Ok(Ok(response)),
            Err(CallError::Etcd(error, _)) if error.code == EtcdError::KEY_NOT_FOUND => Ok(Err(error)),
            Err(error) => Err(error),
        }
    }

    fn put(&self, subnet: &SubnetKey, query: String, form: String) -> ApiRequest {
        ApiRequest {
            kind: CallKind::Write,
            method: Method::PUT,
            path: format!("{}?{query}", path(&self.keys.subnet(subnet))),
            form: Some(form),
        }
    }

    /// Checks that etcd is recent enough.
    async fn check_version(&self) -> Result<(), RegistryError> {
        let version = self.version().await?;
        if version >= OLDEST {
            return Ok(());
        }
        let (major, minor) = version;
        let reason = format!("etcd {major}.{minor} is too old; 2.3 or later is required");
        Err(self.unwritten(CallError::Refused(reason.into())))
    }

    /// Returns the version that all members support, as major and minor. Sends at most one request.
    async fn version(&self) -> Result<(u32, u32), RegistryError> {
        let version = self.version.get_or_try_init(|| async {
            let response = self.get_version().await?;
            let url = self.cluster.endpoints.url(response.member);
            let version: Version = serde_json::from_slice(&response.body)
                .map_err(|error| CallError::Refused(format!("{url}: invalid version: {error}").into()))?;
            version.parse().ok_or_else(|| {
                CallError::Refused(format!("{url}: invalid version: {:?}", version.cluster).into())
            })
        });
        version.await.copied().map_err(|error| self.unwritten(error))
    }

    /// Requests `/version`, which every etcd serves.
    async fn get_version(&self) -> Result<MemberResponse, CallError> {
        let path = "/version".to_owned();
        let request = ApiRequest { kind: CallKind::Read, method: Method::GET, path, form: None };
        self.cluster.call(&request).await
    }

    fn parse<'a>(&self, response: &'a MemberResponse) -> Result<KeyResponse<'a>, CallError> {
        let url = self.cluster.endpoints.url(response.member);
        parse(&response.body).map_err(|error| CallError::NoAnswer(format!("{url}: {error}").into()))
    }

    /// Parses the response to an applied write.
    fn written<'a>(
        &self,
        subnet: SubnetKey,
        response: &'a MemberResponse,
    ) -> Result<Node<'a>, RegistryError> {
        Ok(self.parse(response).map_err(|error| self.uncertain(subnet, error))?.node)
    }

    /// Converts the error of a call that wrote no record.
    fn unwritten(&self, error: CallError) -> RegistryError {
        match error {
            CallError::NotSent(reason) | CallError::NoAnswer(reason) => {
                RegistryError::Unavailable(self.describe(), reason)
            }
            CallError::Etcd(ref error, _) if error.code == EtcdError::NOT_A_DIRECTORY => {
                let cure = match error.cause.strip_suffix("/config") {
                    Some(prefix) => format!("; if it is the network config, use -etcd-prefix={prefix}"),
                    None => String::new(),
                };
                let reason = format!("{} is a value, expected a directory{cure}", error.cause);
                RegistryError::Refused(self.describe(), reason.into())
            }
            error @ (CallError::Refused(_) | CallError::Etcd(..)) => {
                RegistryError::Refused(self.describe(), error.into_reason())
            }
        }
    }

    /// Converts the error of a call that may have written a record.
    fn uncertain(&self, subnet: SubnetKey, error: CallError) -> RegistryError {
        match error {
            CallError::NoAnswer(reason) => RegistryError::Unknown(subnet, reason),
            other @ (CallError::NotSent(_) | CallError::Refused(_) | CallError::Etcd(..)) => {
                self.unwritten(other)
            }
        }
    }
}

/// The response of etcd 2.1 and later to `GET /version`.
#[derive(Debug, Deserialize)]
struct Version {
    /// The version that all members support; `not_decided` right after a new cluster has started.
    #[serde(rename = "etcdcluster")]
    cluster: String,
    /// The version of this member.
    #[serde(rename = "etcdserver", default)]
    member: String,
}

impl Version {
    fn parse(&self) -> Option<(u32, u32)> {
        let version = if self.cluster == "not_decided" { &self.member } else { &self.cluster };
        let mut parts = version.split('.').map(|part| part.parse().ok());
        parts.next().flatten().zip(parts.next().flatten())
    }
}

/// Rounds up to etcd's whole seconds.
fn seconds(ttl: Duration) -> u64 {
    (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(1)
}
