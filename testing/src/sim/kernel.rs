//! The kernel of a simulated host: three tables that outlive the process, change by themselves and refuse writes.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Clones look at the same kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    tables: Arc<Mutex<Tables>>,
    changed: Arc<Notify>,
}

/// One kind of objects. Their order means nothing, but is the same in each run.
pub(super) type Objects<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// A quick hash: nobody chooses keys to do harm here.
#[derive(Default)]
pub(super) struct FastHasher(u64);

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let word = part.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// What the kernel holds: for each peer a neighbour, a forwarding entry and a route.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) neighbours: Objects<Ipv4Addr, Mac>,
    pub(super) fdb: Objects<Mac, Ipv4Addr>,
    pub(super) routes: Objects<Ipv4Net, Ipv4Addr>,
    /// The address of its device.
    pub(super) device: Option<Mac>,
    /// Which tables were changed by others and not read since, one bit for each.
    drifted: u8,
    refused: Option<Instant>,
    /// How many writes and reads will be refused.
    refusals: u32,
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
    pub(super) fn has_same_objects(&self, other: &Self) -> bool {
        (&self.neighbours, &self.fdb, &self.routes) == (&other.neighbours, &other.fdb, &other.routes)
    }

    /// Lets some writes and reads be refused from now on.
    pub(super) fn refuse(&mut self, refusals: u32) {
        self.refusals = refusals;
        self.refused = Some(Instant::now());
    }

    /// Notes that all tables were changed by others.
    pub(super) fn drift(&mut self) {
        self.drifted = 0b111;
    }

    /// Tells whether the process had the chance to make the tables as they should be.
    pub(super) fn are_reconciled(&self) -> bool {
        self.drifted == 0 && self.refused.is_none_or(|refused| refused.elapsed() > 5 * super::GRACE)
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
    /// Stands for the table.
    bit: u8,
}

impl<K, V> SimTable<K, V> {
    pub(super) fn new(
        kernel: &Kernel,
        part: fn(&mut Tables) -> &mut Objects<K, V>,
        dropped: fn(&mut Tables, &K),
        bit: u8,
    ) -> Self {
        Self { kernel: kernel.clone(), part, dropped, bit }
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
        tables.drifted &= !self.bit;
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
