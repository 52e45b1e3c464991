//! What should be beside what there is. Pure.
//!
//! For nearly every object the two are equal, so one value stands for both, and what there is in the place of something
//! else is kept apart. A large network then costs one value for each object.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Change;
use crate::backend::ObjectFailure;
use crate::backoff::Backoff;

/// What should be beside what there is, for one table. Pure.
#[derive(Debug)]
pub struct Tracker<K, V> {
    objects: BTreeMap<K, Object<V>>,
    /// What there is in the place of the objects whose state is [`State::Other`].
    instead: BTreeMap<K, V>,
    open: Open<K>,
    /// Objects the kernel holds besides the one in force under the same key.
    surplus: BTreeMap<K, Vec<V>>,
    /// Objects that failed.
    waiting: BTreeMap<K, Waiting>,
    stale: bool,
    satisfies: fn(&V, &V) -> bool,
}

#[derive(Debug)]
struct Object<V> {
    /// What it should be or, if it should not be, what it is.
    value: V,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is what it should be.
    Right,
    /// It should be and is not there.
    Missing,
    /// There is something else in its place.
    Other,
    /// It is there and should not be.
    Unwanted,
}

/// Objects whose two sides may differ.
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

/// The pauses between attempts at one object: the first so short that a passing fault is not noticed, the longest so
/// long that thousands of failing objects cost little.
const RETRY: Backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(30) };

impl<V: PartialEq> Object<V> {
    fn desired(&self) -> Option<&V> {
        (self.state != State::Unwanted).then_some(&self.value)
    }

    /// Takes in what there is, and returns it if it must be kept apart.
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
    /// Starts with nothing wanted and nothing known.
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

    /// Says what an object should be.
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

    /// Says that an object should not be.
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

    /// Says what all objects should be; of several values for one key the last counts.
    pub fn set_all_desired(&mut self, mut desired: Vec<(K, V)>) {
        self.open = Open::All;
        desired.sort_by(|one, other| one.0.cmp(&other.0));
        if self.objects.is_empty() {
            let missing = |(key, value)| (key, Object { value, state: State::Missing });
            self.objects = desired.into_iter().map(missing).collect();
            return;
        }
        // Both sides are in the order of their keys, so one walk finds what differs, which mostly is nothing.
        let (mut gone, mut news) = (Vec::new(), Vec::new());
        let mut desired = desired.into_iter().peekable();
        for (key, object) in &self.objects {
            news.extend(std::iter::from_fn(|| desired.next_if(|(other, _)| other < key)));
            let last = std::iter::from_fn(|| desired.next_if(|(other, _)| other == key)).last();
            match last {
                Some((_, value)) if object.desired() == Some(&value) => {}
                Some(wanted) => news.push(wanted),
                None => gone.push(key.clone()),
            }
        }
        news.extend(desired);
        gone.iter().for_each(|key| self.unset_desired(key));
        news.into_iter().for_each(|(key, value)| self.set_desired(key, value));
    }

    /// Returns what an object should be.
    #[must_use]
    pub fn desired(&self, key: &K) -> Option<&V> {
        self.objects.get(key)?.desired()
    }

    /// Returns what is believed to be there and in force.
    #[must_use]
    pub fn actual(&self, key: &K) -> Option<&V> {
        actual_of(key, self.objects.get(key)?, &self.instead)
    }

    /// Says that the kernel may have changed: the table is to be read before the next write.
    pub fn mark_stale(&mut self) {
        self.stale = true;
    }

    /// Lets an object that failed be tried again at once, because what was in its way may be gone.
    pub fn retry(&mut self, key: &K) {
        self.waiting.remove(key);
    }

    /// Lets all objects that failed be tried again at once, because what was in their way may be gone.
    pub fn retry_all(&mut self) {
        self.waiting.clear();
    }

    /// Tells whether the table is to be read before the next write.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Takes in everything there is, and returns how many objects are not as they were believed to be.
    pub fn observe(&mut self, read: impl IntoIterator<Item = (K, V)>) -> usize {
        self.stale = false;
        self.open = Open::All;
        let seen = self.in_force(read.into_iter().collect());
        let (mut drifted, mut unknown, mut gone) = (0, Vec::new(), Vec::new());
        // Both sides are in the order of their keys, so one walk finds all pairs.
        let mut seen = seen.into_iter().peekable();
        for (key, object) in &mut self.objects {
            unknown.extend(std::iter::from_fn(|| seen.next_if(|(other, _)| other < key)));
            let actual = seen.next_if(|(other, _)| other == key).map(|(_, value)| value);
            let believed = actual_of(key, object, &self.instead);
            if believed == actual.as_ref() {
                continue;
            }
            if believed.is_some() {
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

    /// Sorts what was read, and sets aside all but the one that is in force under each key: the first, or another one
    /// that is wanted, as it will be in force once the first is gone.
    fn in_force(&mut self, mut read: Vec<(K, V)>) -> Vec<(K, V)> {
        self.surplus.clear();
        // Stable, so that the first of a key stays the first.
        read.sort_by(|one, other| one.0.cmp(&other.0));
        if read.is_sorted_by(|one, other| one.0 < other.0) {
            return read;
        }
        let mut seen: Vec<(K, V)> = Vec::with_capacity(read.len());
        for (key, value) in read {
            match seen.last_mut() {
                Some(last) if last.0 == key => {
                    let better = self.desired(&key).is_some_and(|wanted| {
                        !(self.satisfies)(wanted, &last.1) && (self.satisfies)(wanted, &value)
                    });
                    let surplus = if better { std::mem::replace(&mut last.1, value) } else { value };
                    self.surplus.entry(key).or_default().push(surplus);
                }
                _ => seen.push((key, value)),
            }
        }
        seen
    }

    /// Takes in what there is under a key, or that there is nothing.
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

    /// Lists the objects to be put now.
    #[must_use]
    pub fn missing(&self, now: Instant) -> Vec<Change<K, V>> {
        self.due(now).filter_map(|(key, object)| self.put(key, object)).collect()
    }

    /// Lists the objects to be dropped now.
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

    /// Tells whether a surplus object may be dropped. One that is waiting to be put in force may not: it could be all
    /// there is for a while. Nor may one that cannot be told from the one in force.
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

    /// Takes in the answer to a change.
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
                // What else failed under the key of a surplus object goes on waiting.
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

    /// Lets go of objects that are as they should be. Called when all answers are in.
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

    /// Lists what failed and waits.
    pub fn failures(&self) -> impl Iterator<Item = &ObjectFailure> {
        self.waiting.values().map(|waiting| &waiting.failure)
    }

    /// Lists what failed and waits, by key.
    pub fn failures_by_key(&self) -> impl Iterator<Item = (&K, &ObjectFailure)> {
        self.waiting.iter().map(|(key, waiting)| (key, &waiting.failure))
    }

    /// Returns how long until the first failed object may be tried again, or the table is to be read again.
    #[must_use]
    pub fn retry_in(&self, now: Instant) -> Option<Duration> {
        let failed = self.waiting.values().map(|waiting| waiting.until.saturating_duration_since(now));
        failed.chain(self.stale.then_some(RETRY.first)).min()
    }
}

/// Returns what there is, as far as it is known.
fn actual_of<'a, K: Ord, V>(key: &K, object: &'a Object<V>, instead: &'a BTreeMap<K, V>) -> Option<&'a V> {
    match object.state {
        State::Right | State::Unwanted => Some(&object.value),
        State::Missing => None,
        State::Other => instead.get(key),
    }
}

#[cfg(test)]
mod tests;
