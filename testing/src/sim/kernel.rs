//! The kernel of a simulated host: three tables that outlive the process, drift and refuse writes.

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

/// The kernel of a host. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    tables: Arc<Mutex<Tables>>,
    changed: Arc<Notify>,
}

/// Objects of one kind. Their order is arbitrary but equal in every run.
pub(super) type Objects<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// A fast hash; keys here are not chosen by an attacker.
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

/// The objects of the kernel: a neighbour, an FDB entry and a route per peer.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) neighbours: Objects<Ipv4Addr, Mac>,
    pub(super) fdb: Objects<Mac, Ipv4Addr>,
    pub(super) routes: Objects<Ipv4Net, Ipv4Addr>,
    /// The MAC address of the device.
    pub(super) device: Option<Mac>,
    /// A bit per table that drifted and has not been read since.
    drifted: u8,
    refused: Option<Instant>,
    /// The number of reads and writes that will fail.
    refusals: u32,
    /// The dropped routes that have not been checked yet.
    pub(super) dropped: Vec<Ipv4Net>,
}

impl Kernel {
    pub(super) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notifies the process of a change.
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

    /// Makes this many reads and writes fail from now on.
    pub(super) fn refuse(&mut self, refusals: u32) {
        self.refusals = refusals;
        self.refused = Some(Instant::now());
    }

    /// Marks all tables as drifted.
    pub(super) fn drift(&mut self) {
        self.drifted = 0b111;
    }

    /// Returns whether the process had time to reconcile the tables.
    pub(super) fn are_reconciled(&self) -> bool {
        self.drifted == 0 && self.refused.is_none_or(|refused| refused.elapsed() > 5 * super::GRACE)
    }

    fn refuses(&mut self) -> bool {
        let refuses = self.refusals > 0;
        self.refusals = self.refusals.saturating_sub(1);
        refuses
    }
}

/// A table of the kernel.
#[derive(Debug)]
pub(super) struct SimTable<K, V> {
    kernel: Kernel,
    part: fn(&mut Tables) -> &mut Objects<K, V>,
    dropped: fn(&mut Tables, &K),
    /// The bit of the table in `drifted`.
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
