//! A kernel table in memory that fails on demand.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};

/// A table of kernel objects in memory. Clones share the objects, as two processes share a kernel.
///
/// Like the kernel, it can hold several different objects under one key; the first is effective.
#[derive(Debug)]
pub struct FakeTable<K, V> {
    kernel: Arc<Mutex<Kernel<K, V>>>,
}

#[derive(Debug)]
struct Kernel<K, V> {
    objects: BTreeMap<K, Vec<V>>,
    failing_writes: BTreeMap<K, usize>,
    failing_reads: usize,
    writes_left: Option<usize>,
    reads: usize,
    written: Vec<Change<K, V>>,
}

impl<K: Ord + Clone, V: PartialEq + Clone> FakeTable<K, V> {
    /// Creates an empty table.
    #[must_use]
    pub fn new() -> Self {
        let kernel = Kernel {
            objects: BTreeMap::new(),
            failing_writes: BTreeMap::new(),
            failing_reads: 0,
            writes_left: None,
            reads: 0,
            written: Vec::new(),
        };
        Self { kernel: Arc::new(Mutex::new(kernel)) }
    }

    /// Replaces the objects under a key, as another process would. The first is effective.
    pub fn set(&self, key: K, values: impl IntoIterator<Item = V>) {
        let mut distinct: Vec<V> = Vec::new();
        for value in values {
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        let mut kernel = self.kernel();
        if distinct.is_empty() {
            kernel.objects.remove(&key);
        } else {
            kernel.objects.insert(key, distinct);
        }
    }

    /// Returns all objects.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<K, Vec<V>> {
        self.kernel().objects.clone()
    }

    /// Makes the next writes under a key fail.
    pub fn fail_writes(&self, key: K, times: usize) {
        self.kernel().failing_writes.insert(key, times);
    }

    /// Makes the next reads fail.
    pub fn fail_reads(&self, times: usize) {
        self.kernel().failing_reads = times;
    }

    /// Makes everything fail after this many writes, as if the process had been killed.
    pub fn stop_after(&self, writes: usize) {
        self.kernel().writes_left = Some(writes);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut kernel = self.kernel();
        kernel.failing_writes.clear();
        kernel.failing_reads = 0;
        kernel.writes_left = None;
    }

    /// Returns the number of reads.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.kernel().reads
    }

    /// Returns the writes since the last call, including failed ones.
    #[must_use]
    pub fn take_writes(&self) -> Vec<Change<K, V>> {
        std::mem::take(&mut self.kernel().written)
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel<K, V>> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Default for FakeTable<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, V> Clone for FakeTable<K, V> {
    fn clone(&self) -> Self {
        Self { kernel: Arc::clone(&self.kernel) }
    }
}

impl<K, V> Table for FakeTable<K, V>
where
    K: Ord + Clone + Debug + Send,
    V: PartialEq + Clone + Debug + Send,
{
    type Key = K;
    type Value = V;

    fn name(key: &K, value: &V) -> String {
        format!("object {key:?} {value:?}")
    }

    fn read(&mut self) -> Result<Vec<(K, V)>, BoxError> {
        let mut kernel = self.kernel();
        kernel.reads += 1;
        if let Some(left) = kernel.failing_reads.checked_sub(1) {
            kernel.failing_reads = left;
            return Err("interrupted".into());
        }
        let all = kernel.objects.iter();
        Ok(all.flat_map(|(key, values)| values.iter().map(|value| (key.clone(), value.clone()))).collect())
    }

    fn apply(&mut self, changes: &[Change<K, V>]) -> Vec<Result<(), BoxError>> {
        let mut kernel = self.kernel();
        changes.iter().map(|change| kernel.write(change)).collect()
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Kernel<K, V> {
    fn write(&mut self, change: &Change<K, V>) -> Result<(), BoxError> {
        if let Some(left) = &mut self.writes_left {
            *left = left.checked_sub(1).ok_or("the process is dead")?;
        }
        self.written.push(change.clone());
        let (Change::Put { key, .. } | Change::Drop { key, .. }) = change;
        if let Some(left) = self.failing_writes.get_mut(key).filter(|left| **left > 0) {
            *left -= 1;
            return Err("operation not permitted".into());
        }
        let values = self.objects.entry(key.clone()).or_default();
        match change {
            Change::Put { value, instead_of, .. } => {
                // The new object becomes effective and replaces the old one.
                values.retain(|other| other != value && Some(other) != instead_of.as_ref());
                values.insert(0, value.clone());
            }
            Change::Drop { value, .. } => values.retain(|other| other != value),
        }
        if values.is_empty() {
            self.objects.remove(key);
        }
        Ok(())
    }
}
