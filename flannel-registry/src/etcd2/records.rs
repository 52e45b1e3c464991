//! Reading and writing records.
//!
//! A write compares `modifiedIndex`, which a renewal moves on; the revision, which it does not, is what the caller
//! knows (see `revisions`). So a comparison that fails is looked into: if the record was only renewed meanwhile, the
//! write is made again with its new index.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[cfg(feature = "etcd-v3")]
use flannel_core::BadRecord;
use flannel_core::{Lease, LeaseAttrs, RegistryError, Revision, Snapshot, SubnetKey, Term};
use hyper::Method;
use serde::Deserialize;

use super::Store;
use super::answer::{EtcdError, Node, Told, read};
use super::calls::Call;
use super::cluster::{Answer, Failure};
use super::keys::{form_value, path, read_node};
use super::member::Ask;
use crate::etcd::Position;
#[cfg(feature = "etcd-v3")]
use crate::migration::Original;

/// How often a write is made again because the record was renewed meanwhile. A record is renewed by one host, hours
/// apart.
const WRITE_ATTEMPTS: usize = 3;
/// Before 2.3 a `refresh` is not understood, and empties the value.
const OLDEST: (u32, u32) = (2, 3);

impl Store {
    /// Reads the text of the configuration.
    pub(super) async fn config(&self) -> Result<Option<String>, RegistryError> {
        let key = self.keys.config();
        let answer = self.found(key, false).await.map_err(|failure| self.unwritten(failure))?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(absent) => {
                self.config_read.at(absent.index);
                return Ok(None);
            }
        };
        let position = answer.head.position(Position::default());
        self.config_read.at(position.revision);
        self.last.heard(&position);
        let node = self.told(&answer).map_err(|failure| self.unwritten(failure))?.node;
        if node.dir {
            let reason = format!(
                "{key} is a directory and should hold a text; remove it with: \
                 ETCDCTL_API=2 etcdctl rm --recursive {key}"
            );
            return Err(RegistryError::Refused(self.describe(), reason.into()));
        }
        Ok(Some(node.value))
    }

    /// Reads all leases, and where in the history of which store they stand.
    pub(super) async fn list(&self) -> Result<(Position, Snapshot), Failure> {
        let answer = match self.found(self.keys.subnets(), true).await? {
            Ok(answer) => answer,
            Err(absent) => {
                self.revisions().keep(&[], absent.index);
                let revision = Revision(absent.index);
                return Ok((Position::after(revision), Snapshot::new(revision)));
            }
        };
        let directory = self.directory(&answer)?;
        // A member that keeps its index to itself is at least as far as what it tells of.
        let position = answer.head.position(Position::after(Revision(directory.modified_index)));
        self.last.heard(&position);
        self.cluster.word.heard_at(position.revision);
        let mut revisions = self.revisions();
        let (leases, bad) = self.keys.read_all(&directory, &mut revisions);
        revisions.keep(&leases, position.revision);
        let mut snapshot = Snapshot::new(Revision(position.revision));
        snapshot.leases = leases.into_iter().map(Arc::new).collect();
        snapshot.bad = bad;
        Ok((position, snapshot))
    }

    /// Reads all records as they are written, in the order of their subnets.
    #[cfg(feature = "etcd-v3")]
    pub(super) async fn originals(&self) -> Result<(Vec<Original>, Vec<BadRecord>), Failure> {
        let Ok(answer) = self.found(self.keys.subnets(), true).await? else {
            return Ok((Vec::new(), Vec::new()));
        };
        let original = |lease, node: &Node<'_>| Original {
            lease,
            record: node.value.clone(),
            // Seconds that are over count as none.
            left: node.ttl.map(|ttl| Duration::from_secs(u64::try_from(ttl).unwrap_or_default())),
        };
        let (mut originals, bad) = self.keys.records(&self.directory(&answer)?, original);
        originals.sort_by_key(|original| original.lease.subnet);
        Ok((originals, bad))
    }

    fn directory<'a>(&self, answer: &'a Answer) -> Result<Node<'a>, Failure> {
        let node = self.told(answer)?.node;
        if node.dir {
            return Ok(node);
        }
        let key = self.keys.subnets();
        Err(Failure::Refused(
            format!(
                "{key} holds a text and should be a directory; remove it with: ETCDCTL_API=2 etcdctl rm {key}"
            )
            .into(),
        ))
    }

    /// Writes a lease that is not there yet.
    pub(super) async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        self.is_recent().await?;
        let form = format!("ttl={}&value={}", seconds(ttl), form_value(&attrs.to_record()));
        let ask = self.put(&subnet, "prevExist=false".to_owned(), form);
        let answer = match self.cluster.call(&ask).await {
            Ok(answer) => answer,
            Err(Failure::Said(error, _))
                if error.code == EtcdError::KEY_EXISTS || error.code == EtcdError::NOT_A_FILE =>
            {
                return Err(RegistryError::Exists(subnet));
            }
            Err(failure) => return Err(self.uncertain(subnet, failure)),
        };
        let node = self.written(subnet, &answer)?;
        let revision = self.revisions().wrote(subnet, &node);
        Ok(Lease { subnet, attrs: attrs.clone(), revision, term: Term::Limited })
    }

    /// Replaces a record. One without an end stays without.
    pub(super) async fn update(
        &self,
        lease: &Lease,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        self.is_recent().await?;
        let value = form_value(&attrs.to_record());
        let form = match lease.term {
            Term::Limited => format!("ttl={}&value={value}", seconds(ttl)),
            Term::Permanent => format!("value={value}"),
        };
        let answer = self
            .change(lease, |index| self.put(&lease.subnet, format!("prevIndex={index}"), form.clone()))
            .await?;
        let node = self.written(lease.subnet, &answer)?;
        let revision = self.revisions().wrote(lease.subnet, &node);
        Ok(Lease { attrs: attrs.clone(), revision, ..lease.clone() })
    }

    /// Gives a record a new time to live and leaves it alone otherwise.
    pub(super) async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        if lease.term == Term::Permanent {
            let index = self.revisions().index(lease);
            return match self.unchanged(lease).await? {
                Some(found) if found == index => Ok(ttl),
                _ => Err(RegistryError::Changed(lease.subnet)),
            };
        }
        self.is_recent().await?;
        let form = format!("ttl={}", seconds(ttl));
        let parameters = |index| format!("prevExist=true&prevIndex={index}&refresh=true");
        let change = self.change(lease, |index| self.put(&lease.subnet, parameters(index), form.clone()));
        let answer = match change.await {
            // Whether it was renewed is not known, but it was not changed.
            Err(RegistryError::Unknown(_, reason)) => {
                return Err(RegistryError::Unavailable(self.describe(), reason));
            }
            answer => answer?,
        };
        let node = self.written(lease.subnet, &answer)?;
        self.revisions().renewed(lease, &node);
        Ok(node.ttl.and_then(|ttl| u64::try_from(ttl).ok()).map_or(ttl, Duration::from_secs))
    }

    /// Removes a record.
    pub(super) async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        let answer = self
            .change(lease, |index| Ask {
                call: Call::Write,
                method: Method::DELETE,
                path: format!("{}?prevIndex={index}", path(&self.keys.subnet(&lease.subnet))),
                form: None,
            })
            .await?;
        let node = self.written(lease.subnet, &answer)?;
        self.revisions().forget(&lease.subnet, Revision(node.modified_index));
        Ok(())
    }

    /// Makes a write that compares the index of a lease.
    async fn change(&self, lease: &Lease, ask: impl Fn(u64) -> Ask + Send) -> Result<Answer, RegistryError> {
        let mut index = self.revisions().index(lease);
        for _ in 0..WRITE_ATTEMPTS {
            let error = match self.cluster.call(&ask(index)).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Said(error, url)) => (error, url),
                Err(failure) => return Err(self.uncertain(lease.subnet, failure)),
            };
            match error.0.code {
                EtcdError::KEY_NOT_FOUND => return Err(RegistryError::Gone(lease.subnet)),
                EtcdError::NOT_A_FILE => return Err(RegistryError::Changed(lease.subnet)),
                EtcdError::COMPARE_FAILED => match self.unchanged(lease).await? {
                    Some(renewed) if renewed != index => index = renewed,
                    _ => return Err(RegistryError::Changed(lease.subnet)),
                },
                _ => return Err(self.uncertain(lease.subnet, Failure::Said(error.0, error.1))),
            }
        }
        Err(RegistryError::Changed(lease.subnet))
    }

    /// Reads a record, and answers with its index if it is still the lease, renewed or not.
    async fn unchanged(&self, lease: &Lease) -> Result<Option<u64>, RegistryError> {
        let answer = self.get(&self.keys.subnet(&lease.subnet)).await;
        let Some(answer) = answer.map_err(|failure| self.unwritten(failure))? else {
            return Err(RegistryError::Gone(lease.subnet));
        };
        let node = self.told(&answer).map_err(|failure| self.unwritten(failure))?.node;
        if node.dir || read_node(&lease.subnet.to_string(), &node).is_err() {
            return Ok(None);
        }
        Ok(self.revisions().renewed_to(lease, &node))
    }

    /// Reads one key, as the cluster agrees on it.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Answer>, Failure> {
        Ok(self.found(key, false).await?.ok())
    }

    /// Reads a key, or all below it, as the cluster agrees on it; an error in etcd's words if there is none.
    async fn found(&self, key: &str, recursive: bool) -> Result<Result<Answer, EtcdError>, Failure> {
        let ask = Ask {
            call: Call::Read,
            method: Method::GET,
            path: format!("{}?quorum=true&recursive={recursive}&sorted=false", path(key)),
            form: None,
        };
        match self.cluster.call(&ask).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(Failure::Said(error, _)) if error.code == EtcdError::KEY_NOT_FOUND => Ok(Err(error)),
            Err(failure) => Err(failure),
        }
    }

    fn put(&self, subnet: &SubnetKey, parameters: String, form: String) -> Ask {
        Ask {
            call: Call::Write,
            method: Method::PUT,
            path: format!("{}?{parameters}", path(&self.keys.subnet(subnet))),
            form: Some(form),
        }
    }

    /// Makes sure that etcd is recent enough.
    async fn is_recent(&self) -> Result<(), RegistryError> {
        let version = self.version().await?;
        if version >= OLDEST {
            return Ok(());
        }
        let (major, minor) = version;
        let reason = format!("it is etcd {major}.{minor}; 2.3 or later is needed");
        Err(self.unwritten(Failure::Refused(reason.into())))
    }

    /// Returns the version of etcd that all members have, as major and minor. Asked for once.
    pub(super) async fn version(&self) -> Result<(u32, u32), RegistryError> {
        let version = self.version.get_or_try_init(|| async {
            let answer = self.ask_version().await?;
            let url = self.cluster.url(answer.member);
            let version: Version = serde_json::from_slice(&answer.body)
                .map_err(|error| Failure::Refused(format!("{url}: its version: {error}").into()))?;
            version
                .parse()
                .ok_or_else(|| Failure::Refused(format!("{url}: its version: {:?}", version.cluster).into()))
        });
        version.await.copied().map_err(|failure| self.unwritten(failure))
    }

    /// Asks what every etcd answers, whichever of its interfaces it serves.
    async fn ask_version(&self) -> Result<Answer, Failure> {
        let ask = Ask { call: Call::Read, method: Method::GET, path: "/version".to_owned(), form: None };
        self.cluster.call(&ask).await
    }

    /// Tells what time it is at the member that answers, and which one that is.
    pub(super) async fn date(&self) -> Result<(Option<SystemTime>, String), RegistryError> {
        let answer = self.ask_version().await.map_err(|failure| self.unwritten(failure))?;
        Ok((answer.head.date, self.cluster.url(answer.member).to_owned()))
    }

    fn told<'a>(&self, answer: &'a Answer) -> Result<Told<'a>, Failure> {
        read(&answer.body)
            .map_err(|error| Failure::Away(format!("{}: {error}", self.cluster.url(answer.member)).into()))
    }

    /// Reads the answer to a write that happened.
    fn written<'a>(&self, subnet: SubnetKey, answer: &'a Answer) -> Result<Node<'a>, RegistryError> {
        let told = self.told(answer).map_err(|failure| self.uncertain(subnet, failure))?;
        Ok(told.node)
    }

    /// The error of a call that did not write a record.
    pub(super) fn unwritten(&self, failure: Failure) -> RegistryError {
        match failure {
            Failure::NotSent(reason) | Failure::Away(reason) => {
                RegistryError::Unavailable(self.describe(), reason)
            }
            Failure::Said(ref error, _) if error.code == EtcdError::NOT_A_DIRECTORY => {
                let reason = format!("{} holds a text and should be a directory", error.cause);
                RegistryError::Refused(self.describe(), reason.into())
            }
            failure @ (Failure::Refused(_) | Failure::Said(..)) => {
                RegistryError::Refused(self.describe(), failure.into_reason())
            }
        }
    }

    /// The error of a call that may have written a record.
    fn uncertain(&self, subnet: SubnetKey, failure: Failure) -> RegistryError {
        match failure {
            Failure::Away(reason) => RegistryError::Unknown(subnet, reason),
            other @ (Failure::NotSent(_) | Failure::Refused(_) | Failure::Said(..)) => self.unwritten(other),
        }
    }
}

/// What etcd 2.1 and later answer to `GET /version`.
#[derive(Debug, Deserialize)]
struct Version {
    /// What all members can do; `not_decided` right after a new cluster has started.
    #[serde(rename = "etcdcluster")]
    cluster: String,
    /// What this member can do.
    #[serde(rename = "etcdserver", default)]
    member: String,
}

impl Version {
    fn parse(&self) -> Option<(u32, u32)> {
        let decided = if self.cluster == "not_decided" { &self.member } else { &self.cluster };
        let mut parts = decided.split('.').map(|part| part.parse().ok());
        parts.next().flatten().zip(parts.next().flatten())
    }
}

/// etcd counts whole seconds.
fn seconds(ttl: Duration) -> u64 {
    (ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).max(1)
}
