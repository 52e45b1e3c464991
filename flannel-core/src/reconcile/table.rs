//! The interface to one kind of kernel object.

use std::fmt::Debug;

use crate::registry::BoxError;

/// Reads and writes one kind of kernel object.
///
/// Each implementation keeps these promises:
///
/// 1. `read` returns all objects that it owns and no others. If the kernel holds several objects under one key, `read`
///    returns them all, the effective one first.
/// 2. `apply` returns one result per change, in order, and a failed change doesn't prevent others.
/// 3. Putting an object that exists and dropping one that doesn't succeed.
///
/// Reconciling a table in memory:
///
/// ```
/// use std::collections::BTreeMap;
/// use std::time::Instant;
/// use flannel_core::BoxError;
/// use flannel_core::reconcile::{Change, Reconciler, Table, pass};
///
/// struct Routes(BTreeMap<&'static str, &'static str>);
///
/// impl Table for Routes {
///     type Key = &'static str;
///     type Value = &'static str;
///
///     fn name(subnet: &Self::Key, host: &Self::Value) -> String {
///         format!("route {subnet} via {host}")
///     }
///     fn read(&mut self) -> Result<Vec<(Self::Key, Self::Value)>, BoxError> {
///         Ok(self.0.clone().into_iter().collect())
///     }
///     fn apply(&mut self, changes: &[Change<Self::Key, Self::Value>]) -> Vec<Result<(), BoxError>> {
///         let mut apply = |change: &Change<_, _>| match change {
///             Change::Put { key, value, .. } => drop(self.0.insert(*key, *value)),
///             Change::Drop { key, .. } => drop(self.0.remove(*key)),
///         };
///         changes.iter().map(|change| Ok(apply(change))).collect()
///     }
/// }
///
/// let stale = BTreeMap::from([("10.5.9.0/24", "192.168.64.9")]);
/// let mut routes = Reconciler::new(Routes(stale));
/// routes.tracker.set_desired("10.5.2.0/24", "192.168.64.2");
/// let report = pass(&mut [("the routes", &mut routes)], true, Instant::now());
/// assert_eq!((report.written, report.removed), (1, 1));
/// assert_eq!(routes.table().0, BTreeMap::from([("10.5.2.0/24", "192.168.64.2")]));
/// ```
pub trait Table {
    /// The identity of an object.
    type Key: Ord + Clone + Debug + Send;
    /// The attributes to compare.
    type Value: PartialEq + Clone + Debug + Send;

    /// Names an object in reports, such as `route 10.5.3.0/24 via 10.5.3.0`.
    fn name(key: &Self::Key, value: &Self::Value) -> String;

    /// Returns true if the actual value satisfies the desired one. Override it to ignore attributes.
    fn satisfies(desired: &Self::Value, actual: &Self::Value) -> bool {
        desired == actual
    }

    /// Reads the owned objects.
    ///
    /// # Errors
    ///
    /// Any error that prevented a complete read.
    #[expect(clippy::type_complexity, reason = "a type alias would hide the pair")]
    fn read(&mut self) -> Result<Vec<(Self::Key, Self::Value)>, BoxError>;

    /// Applies changes.
    fn apply(&mut self, changes: &[Change<Self::Key, Self::Value>]) -> Vec<Result<(), BoxError>>;
}

/// A write to a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<K, V> {
    /// Creates an object, or replaces the known one.
    Put {
        /// The key.
        key: K,
        /// The desired value.
        value: V,
        /// The known actual value.
        instead_of: Option<V>,
    },
    /// Removes an object.
    Drop {
        /// The key.
        key: K,
        /// The known actual value.
        value: V,
    },
}

impl<K, V> Change<K, V> {
    pub(super) fn key(&self) -> &K {
        match self {
            Self::Put { key, .. } | Self::Drop { key, .. } => key,
        }
    }
}
