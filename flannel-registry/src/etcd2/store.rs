//! The state that the clones of a registry share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;

use super::cluster::Cluster;
use super::keys::Keys;
use super::options::{Etcd2Options, Etcd2OptionsError};
use super::revisions::Revisions;
use crate::change_notifier::ChangeNotifier;
use crate::etcd::{ConfigRevision, LastClusterId};

/// The state that all clones of a registry share.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) cluster: Cluster,
    pub(super) keys: Keys,
    pub(super) last_cluster: LastClusterId,
    pub(super) config_revision: ConfigRevision,
    pub(super) config_changes: ChangeNotifier,
    pub(super) silence: Duration,
    pub(super) revisions: Mutex<Revisions>,
    /// The cluster version of etcd, once known.
    pub(super) version: OnceCell<(u32, u32)>,
}

impl Store {
    /// Creates the state without connecting.
    pub(super) fn new(options: &Etcd2Options) -> Result<Self, Etcd2OptionsError> {
        Ok(Self {
            cluster: Cluster::new(options)?,
            keys: Keys::new(&options.prefix),
            last_cluster: LastClusterId::default(),
            config_revision: ConfigRevision::default(),
            config_changes: ChangeNotifier::default(),
            silence: options.silence,
            revisions: Mutex::default(),
            version: OnceCell::new(),
        })
    }

    /// Names the store for people.
    pub(super) fn describe(&self) -> String {
        format!("etcd v2 at {}", self.cluster.endpoints.urls().join(", "))
    }

    /// Returns the known revisions.
    pub(super) fn revisions(&self) -> MutexGuard<'_, Revisions> {
        // Each change is complete, so poisoning means nothing.
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
