//! An etcd for one test, and what only its operator can do to it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_registry::{Etcd3Options, Etcd3Registry};
use flannel_testing::Etcd;

pub(crate) use crate::common::{DAY, PATIENCE, PREFIX, host, next, subnet, subnet_key, until, words};

pub(crate) struct Server(Mutex<Etcd>);

impl Server {
    pub(crate) fn start() -> Self {
        Self(Mutex::new(Etcd::start().unwrap()))
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn url(&self) -> String {
        self.etcd().client_url()
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.etcd().client_address()
    }

    /// Options that notice a silent etcd soon.
    pub(crate) fn options(&self) -> Etcd3Options {
        let mut options = Etcd3Options::default();
        options.endpoints = vec![self.url()];
        options.timeout = Duration::from_secs(2);
        options.silence = Duration::from_secs(3);
        options
    }

    pub(crate) fn registry(&self) -> Etcd3Registry {
        Etcd3Registry::new(self.options()).unwrap()
    }

    /// Runs `etcdctl` and answers with what it writes, without the last line break.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.etcd().etcdctl(arguments).unwrap().trim_end_matches('\n').to_owned()
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", &subnet_key(key), value]);
    }

    pub(crate) fn remove(&self, key: &str) {
        self.ctl(&["del", &subnet_key(key)]);
    }

    /// Makes etcd forget all changes so far.
    pub(crate) fn compact(&self) {
        let revision = self.revision();
        // Nothing can be compacted twice, or before anything was written.
        let _ = self.etcd().etcdctl(&["compact", &revision.to_string()]);
    }

    pub(crate) fn revision(&self) -> u64 {
        let answer = self.ctl(&["get", "nothing", "-w", "fields"]);
        let line = answer.lines().find_map(|line| line.strip_prefix("\"Revision\" : "));
        line.unwrap().parse().unwrap()
    }
}
