//! The desired and the actual state of a table. Pure.
//!
//! For nearly every object the two are equal and share one value; a differing actual value is stored separately. So a large
//! network costs one value per object.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::table::Change;
use crate::backoff::Backoff;
use crate::report::ObjectFailure;

/// Tracks the desired and the actual state of the objects in one table. Pure.
#[derive(Debug)]
pub struct Tracker<K, V> {
    objects: BTreeMap<K, Object<V>>,
    /// The actual values of the objects in [`State::Other`].
    instead: BTreeMap<K, V>,
    open: Open<K>,
    /// Further objects that the kernel holds under the key of an effective one.
    surplus: BTreeMap<K, Vec<V>>,
    /// The failed objects.
    waiting: BTreeMap<K, Waiting>,
    stale: bool,
    satisfies: fn(&V, &V) -> bool,
}

#[derive(Debug)]
struct Object<V> {
    /// The desired value or, for an unwanted object, the actual one.
    value: V,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The actual value is the desired one.
    Right,
    /// The object is desired and doesn't exist.
    Missing,
    /// The actual value differs from the desired one.
    Other,
    /// The object exists and isn't desired.
    Unwanted,
}

/// The objects whose states may differ.
#[derive(Debug)]
enum Open<K> {
    All,
    These(BTreeSet<K>),
}

#[derive(Debug)]
struct Waiting {
    failures: u32,
    until: Instant,
    failure: ObjectFailure,
}

/// The delays between attempts at one object: the first is short enough to hide a transient fault, the longest is long enough
/// that thousands of failing objects cost little.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(30) };

impl<V: PartialEq> Object<V> {
    fn desired(&self) -> Option<&V> {
        (self.state != State::Unwanted).then_some(&self.value)
    }

    /// Sets the actual value, and returns it if it must be stored separately.
    fn found(&mut self, actual: V) -> Option<V> {
        if self.state == State::Unwanted {
            self.value = actual;
        } else if self.value == actual {
            self.state = State::Right;
        } else {
            self.state = State::Other;
            return Some(actual);
        }
        None
    }
}

impl<K: Ord> Open<K> {
    fn add(&mut self, key: K) {
        match self {
            Self::All => {}
            Self::These(keys) => {
                keys.insert(key);
            }
        }
    }
}

impl<K: Ord + Clone, V: PartialEq + Clone> Tracker<K, V> {
    /// Creates a tracker that desires and knows nothing. `satisfies` compares a desired with an actual value.
    #[must_use]
    pub fn new(satisfies: fn(&V, &V) -> bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            instead: BTreeMap::new(),
            open: Open::These(BTreeSet::new()),
            surplus: BTreeMap::new(),
            waiting: BTreeMap::new(),
            stale: true,
            satisfies,
        }
    }

    /// Sets the desired value of an object.
    pub fn set_desired(&mut self, key: K, value: V) {
        match self.objects.entry(key.clone()) {
            Entry::Vacant(place) => drop(place.insert(Object { value, state: State::Missing })),
            Entry::Occupied(object) if object.get().desired() == Some(&value) => return,
            Entry::Occupied(mut object) => {
                let object = object.get_mut();
                let before = std::mem::replace(&mut object.value, value);
                let actual = match object.state {
                    State::Right | State::Unwanted => Some(before),
                    State::Other => self.instead.remove(&key),
                    State::Missing => None,
                };
                object.state = State::Missing;
                let apart = actual.and_then(|actual| object.found(actual));
                self.instead.extend(apart.map(|actual| (key.clone(), actual)));
            }
        }
        self.waiting.remove(&key);
        self.open.add(key);
    }

    /// Marks an object as unwanted.
    pub fn unset_desired(&mut self, key: &K) {
        let Some(object) = self.objects.get_mut(key).filter(|object| object.desired().is_some()) else {
            return;
        };
        let actual = match object.state {
            State::Right | State::Unwanted => true,
            State::Missing => false,
            State::Other => self.instead.remove(key).map(|actual| object.value = actual).is_some(),
        };
        object.state = State::Unwanted;
        if !actual {
            self.objects.remove(key);
        }
        self.waiting.remove(key);
        self.open.add(key.clone());
    }

    /// Sets the desired values of all objects. The last value of a key wins.
    pub fn set_all_desired(&mut self, mut desired: Vec<(K, V)>) {
        self.open = Open::All;
        desired.sort_by(|one, other| one.0.cmp(&other.0));
        if self.objects.is_empty() {
            let missing = |(key, value)| (key, Object { value, state: State::Missing });
            self.objects = desired.into_iter().map(missing).collect();
            return;
        }
        // Both sides are ordered by key, so one walk finds the differences, usually zero.
        let (mut gone, mut changes) = (Vec::new(), Vec::new());
        let mut desired = desired.into_iter().peekable();
        for (key, object) in &self.objects {
            changes.extend(std::iter::from_fn(|| desired.next_if(|(other, _)| other < key)));
            let last = std::iter::from_fn(|| desired.next_if(|(other, _)| other == key)).last();
            match last {
                Some((_, value)) if object.desired() == Some(&value) => {}
                Some(object) => changes.push(object),
                None => gone.push(key.clone()),
            }
        }
        changes.extend(desired);
        gone.iter().for_each(|key| self.unset_desired(key));
        changes.into_iter().for_each(|(key, value)| self.set_desired(key, value));
    }

    /// Returns the desired value of an object.
    #[must_use]
    pub fn desired(&self, key: &K) -> Option<&V> {
        self.objects.get(key)?.desired()
    }

    /// Returns the effective actual value of an object, as last known.
    #[must_use]
    pub fn actual(&self, key: &K) -> Option<&V> {
        actual_of(key, self.objects.get(key)?, &self.instead)
    }

    /// Marks the actual state as stale: the table must be read before the next write.
    pub fn mark_stale(&mut self) {
        self.stale = true;
    }

    /// Allows an immediate retry of a failed object, because the obstacle may be gone.
    pub fn retry(&mut self, key: &K) {
        self.waiting.remove(key);
    }

    /// Allows an immediate retry of all failed objects, because the obstacle may be gone.
    pub fn retry_all(&mut self) {
        self.waiting.clear();
    }

    /// Returns true if the table must be read before the next write.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Sets the actual state of all objects, and returns the number of objects that drifted from the last known state.
    pub fn observe(&mut self, read: impl IntoIterator<Item = (K, V)>) -> usize {
        self.stale = false;
        self.open = Open::All;
        let seen = self.effective(read.into_iter().collect());
        let (mut drifted, mut unknown, mut gone) = (0, Vec::new(), Vec::new());
        // Both sides are ordered by key, so one walk finds all pairs.
        let mut seen = seen.into_iter().peekable();
        for (key, object) in &mut self.objects {
            unknown.extend(std::iter::from_fn(|| seen.next_if(|(other, _)| other < key)));
            let actual = seen.next_if(|(other, _)| other == key).map(|(_, value)| value);
            let known = actual_of(key, object, &self.instead);
            if known == actual.as_ref() {
                continue;
            }
            if known.is_some() {
                drifted += 1;
                self.waiting.remove(key);
                self.instead.remove(key);
            }
            match actual.map(|actual| object.found(actual)) {
                Some(apart) => self.instead.extend(apart.map(|actual| (key.clone(), actual))),
                None if object.state == State::Unwanted => gone.push(key.clone()),
                None => object.state = State::Missing,
            }
        }
        let unwanted = |(key, value)| (key, Object { value, state: State::Unwanted });
        self.objects.extend(unknown.into_iter().chain(seen).map(unwanted));
        gone.iter().for_each(|key| drop(self.objects.remove(key)));
        drifted
    }

    /// Sorts the objects, and sets aside all but the effective one of each key: the first, or a later one that is desired and
    /// becomes effective once the first is gone.
    fn effective(&mut self, mut read: Vec<(K, V)>) -> Vec<(K, V)> {
        self.surplus.clear();
        // A stable sort keeps the order within a key.
        read.sort_by(|one, other| one.0.cmp(&other.0));
        if read.is_sorted_by(|one, other| one.0 < other.0) {
            return read;
        }
        let mut seen: Vec<(K, V)> = Vec::with_capacity(read.len());
        for (key, value) in read {
            match seen.last_mut() {
                Some(last) if last.0 == key => {
                    let better = self.desired(&key).is_some_and(|desired| {
                        !(self.satisfies)(desired, &last.1) && (self.satisfies)(desired, &value)
                    });
                    let surplus = if better { std::mem::replace(&mut last.1, value) } else { value };
                    self.surplus.entry(key).or_default().push(surplus);
                }
                _ => seen.push((key, value)),
            }
        }
        seen
    }

    /// Sets the actual value of an object; `None` if it doesn't exist.
    fn found(&mut self, key: &K, actual: Option<V>) {
        let Some(object) = self.objects.get_mut(key) else {
            return;
        };
        if object.state == State::Other {
            self.instead.remove(key);
        }
        match actual {
            Some(actual) => {
                self.instead.extend(object.found(actual).map(|apart| (key.clone(), apart)));
            }
            None if object.state == State::Unwanted => drop(self.objects.remove(key)),
            None => object.state = State::Missing,
        }
    }

    /// Returns the objects to put now.
    #[must_use]
    pub fn missing(&self, now: Instant) -> Vec<Change<K, V>> {
        self.due(now).filter_map(|(key, object)| self.put(key, object)).collect()
    }

    /// Returns the objects to drop now.
    #[must_use]
    pub fn unwanted(&self, now: Instant) -> Vec<Change<K, V>> {
        let unwanted = self.due(now).filter(|(_, object)| object.state == State::Unwanted);
        let unwanted = unwanted.map(|(key, object)| (key, &object.value));
        let surplus = self
            .surplus
            .iter()
            .flat_map(|(key, values)| values.iter().map(move |value| (key, value)))
            .filter(|(key, value)| self.is_due(key, now) && self.may_go(key, value));
        unwanted
            .chain(surplus)
            .map(|(key, value)| Change::Drop { key: key.clone(), value: value.clone() })
            .collect()
    }

    /// Returns true if a surplus object may be dropped. One that is about to become effective may not, as it could be the only
    /// one for a while. Neither may one that is indistinguishable from the effective one.
    fn may_go(&self, key: &K, value: &V) -> bool {
        self.objects.get(key).is_none_or(|object| {
            let waits = object.desired() == Some(value) && self.put(key, object).is_some();
            actual_of(key, object, &self.instead) != Some(value) && !waits
        })
    }

    fn put(&self, key: &K, object: &Object<V>) -> Option<Change<K, V>> {
        self.is_to_be_put(key, object).then(|| Change::Put {
            key: key.clone(),
            value: object.value.clone(),
            instead_of: self.instead.get(key).cloned(),
        })
    }

    fn is_to_be_put(&self, key: &K, object: &Object<V>) -> bool {
        match object.state {
            State::Right | State::Unwanted => false,
            State::Missing => true,
            State::Other => {
                self.instead.get(key).is_none_or(|actual| !(self.satisfies)(&object.value, actual))
            }
        }
    }

    fn due(&self, now: Instant) -> impl Iterator<Item = (&K, &Object<V>)> {
        let (all, these) = match &self.open {
            Open::All => (Some(&self.objects), None),
            Open::These(keys) => (None, Some(keys)),
        };
        let these = these.into_iter().flatten().filter_map(|key| self.objects.get_key_value(key));
        all.into_iter().flatten().chain(these).filter(move |(key, _)| self.is_due(key, now))
    }

    fn is_due(&self, key: &K, now: Instant) -> bool {
        self.waiting.get(key).is_none_or(|waiting| waiting.until <= now)
    }

    /// Records the result of a change.
    pub fn settle(&mut self, change: Change<K, V>, result: Result<(), ObjectFailure>, now: Instant) {
        match (change, result) {
            (change, Err(failure)) => {
                let key = change.key().clone();
                let failures = self.waiting.get(&key).map_or(0, |waiting| waiting.failures);
                let until = now + RETRY.delay(failures, 0.0);
                self.waiting.insert(key, Waiting { failures: failures.saturating_add(1), until, failure });
            }
            (Change::Put { key, value, .. }, Ok(())) => {
                self.waiting.remove(&key);
                self.found(&key, Some(value));
            }
            (Change::Drop { key, value }, Ok(())) => {
                // Another failure under the key of a surplus object stays.
                if !self.take_surplus(&key, &value) {
                    self.waiting.remove(&key);
                    self.found(&key, None);
                }
            }
        }
    }

    fn take_surplus(&mut self, key: &K, value: &V) -> bool {
        let Some(values) = self.surplus.get_mut(key) else {
            return false;
        };
        let found = values.iter().position(|surplus| surplus == value);
        found.map(|i| values.remove(i)).is_some()
    }

    /// Forgets the objects whose states agree. Called once all results are recorded.
    pub fn close(&mut self) {
        let is_open = |key: &K, object| self.is_to_be_put(key, object) || object.state == State::Unwanted;
        let still: BTreeSet<K> = match &self.open {
            Open::All => self
                .objects
                .iter()
                .filter(|(key, object)| is_open(key, object))
                .map(|(key, _)| key.clone())
                .collect(),
            Open::These(keys) => keys
                .iter()
                .filter(|key| self.objects.get(key).is_some_and(|object| is_open(key, object)))
                .cloned()
                .collect(),
        };
        if !self.waiting.is_empty() {
            let is_surplus = |key: &K| self.surplus.get(key).is_some_and(|values| !values.is_empty());
            self.waiting.retain(|key, _| still.contains(key) || is_surplus(key));
        }
        self.open = Open::These(still);
    }

    /// Returns the failures that wait for a retry.
    pub fn failures(&self) -> impl Iterator<Item = &ObjectFailure> {
        self.waiting.values().map(|waiting| &waiting.failure)
    }

    /// Returns the failures that wait for a retry, by key.
    pub fn failures_by_key(&self) -> impl Iterator<Item = (&K, &ObjectFailure)> {
        self.waiting.iter().map(|(key, waiting)| (key, &waiting.failure))
    }

    /// Returns the time until the first failed object may be retried or the table must be read again.
    #[must_use]
    pub fn retry_in(&self, now: Instant) -> Option<Duration> {
        let failed = self.waiting.values().map(|waiting| waiting.until.saturating_duration_since(now));
        failed.chain(self.stale.then_some(RETRY.first)).min()
    }
}

/// Returns the known actual value.
fn actual_of<'a, K: Ord, V>(key: &K, object: &'a Object<V>, instead: &'a BTreeMap<K, V>) -> Option<&'a V> {
    match object.state {
        State::Right | State::Unwanted => Some(&object.value),
        State::Missing => None,
        State::Other => instead.get(key),
    }
}

#[cfg(test)]
mod tests;
