//! The state that the clones of a registry share.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::cluster::Cluster;
use super::keys::Keys;
use super::options::{Etcd3Options, Etcd3OptionsError};
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
    /// Set once a missing config was looked for under the prefix itself.
    pub(super) looked_for_misplaced: AtomicBool,
    pub(super) page_size: u32,
    pub(super) silence: Duration,
    pub(super) audit: Option<Duration>,
}

impl Store {
    /// Creates the state without connecting.
    pub(super) fn new(options: &Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        Ok(Self {
            cluster: Cluster::new(options)?,
            keys: Keys::new(&options.prefix),
            last_cluster: LastClusterId::default(),
            config_revision: ConfigRevision::default(),
            config_changes: ChangeNotifier::default(),
            looked_for_misplaced: AtomicBool::new(false),
            page_size: options.page_size,
            silence: options.silence,
            audit: options.audit,
        })
    }

    /// Names the store for people.
    pub(super) fn describe(&self) -> String {
        format!("etcd v3 at {}", self.cluster.endpoints.urls().join(", "))
    }
}
