//! The kernel of a simulated host: three tables that outlive the process, change by themselves and refuse writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;
use tokio::sync::Notify;

/// Clones look at the same kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    tables: Arc<Mutex<Tables>>,
    changed: Arc<Notify>,
}

/// One kind of objects. Their order means nothing, but is the same in each run.
pub(super) type Objects<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// What the kernel holds: for each peer a neighbour, a forwarding entry and a route.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) neighbours: Objects<Ipv4Addr, Mac>,
    pub(super) fdb: Objects<Mac, Ipv4Addr>,
    pub(super) routes: Objects<Ipv4Net, Ipv4Addr>,
    /// How many writes and reads will be refused.
    pub(super) refusals: u32,
    /// The routes that were dropped and not looked at yet.
    pub(super) dropped: Vec<Ipv4Net>,
}

impl Kernel {
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the process that something changed.
    pub(super) fn notice(&self) {
        self.changed.notify_one();
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Tables {
    pub(super) fn hold_the_same_as(&self, other: &Self) -> bool {
        (&self.neighbours, &self.fdb, &self.routes) == (&other.neighbours, &other.fdb, &other.routes)
    }

    fn refuses(&mut self) -> bool {
        let refuses = self.refusals > 0;
        self.refusals = self.refusals.saturating_sub(1);
        refuses
    }
}

/// One of the tables of a kernel.
#[derive(Debug)]
pub(super) struct SimTable<K, V> {
    kernel: Kernel,
    part: fn(&mut Tables) -> &mut Objects<K, V>,
    dropped: fn(&mut Tables, &K),
}

impl<K, V> SimTable<K, V> {
    pub(super) fn new(
        kernel: &Kernel,
        part: fn(&mut Tables) -> &mut Objects<K, V>,
        dropped: fn(&mut Tables, &K),
    ) -> Self {
        Self { kernel: kernel.clone(), part, dropped }
    }
}

impl<K, V> Table for SimTable<K, V>
where
    K: Ord + Hash + Clone + Debug + Send,
    V: PartialEq + Clone + Debug + Send,
{
    type Key = K;
    type Value = V;

    fn name(key: &K, value: &V) -> String {
        format!("object {key:?} {value:?}")
    }

    fn read(&mut self) -> Result<Vec<(K, V)>, BoxError> {
        let mut tables = self.kernel.tables();
        if tables.refuses() {
            return Err("interrupted".into());
        }
        let mut read: Vec<_> =
            (self.part)(&mut tables).iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        read.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(read)
    }

    fn apply(&mut self, changes: &[Change<K, V>]) -> Vec<Result<(), BoxError>> {
        let mut tables = self.kernel.tables();
        let mut write = |change: &Change<K, V>| {
            if tables.refuses() {
                return Err("no buffer space available".into());
            }
            match change {
                Change::Put { key, value, .. } => {
                    (self.part)(&mut tables).insert(key.clone(), value.clone());
                }
                Change::Drop { key, .. } => {
                    (self.part)(&mut tables).remove(key);
                    (self.dropped)(&mut tables, key);
                }
            }
            Ok(())
        };
        changes.iter().map(&mut write).collect()
    }
}
