//! Moving a network from etcd's v2 store to its v3 store while its hosts run.
//!
//! 1. Read both stores, and decide for each record of v2 what becomes of it (`plan`, pure).
//! 2. Copy the leases, each with the time that it has left; reservations without an end.
//! 3. Copy the configuration. Only now hosts that look for it find the v3 store.
//! 4. Look again: hosts that came to v2 meanwhile are copied, too.
//!
//! Nothing is removed from either store. What a host wrote over v3 is never overwritten, so all this can be done as
//! often as one likes.

mod plan;

use std::time::Duration;

use flannel_core::{BadRecord, ConfigError, Lease, NetworkConfig, RegistryError, SubnetKey, SubnetRegistry};

use crate::{Etcd2Registry, Etcd3Registry};
use plan::{Action, Known};

/// A record of the v2 store.
#[derive(Clone, Debug)]
pub(crate) struct Original {
    pub(crate) lease: Lease,
    /// The record as it is written.
    pub(crate) record: String,
    /// How long it lasts; nothing if it has no end.
    pub(crate) left: Option<Duration>,
}

/// A record of the v3 store.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) lease: Lease,
    /// The record as it is written.
    pub(crate) record: Vec<u8>,
    pub(crate) author: Author,
    /// How long it lasts, if it is a copy with an end.
    pub(crate) left: Duration,
}

/// Who wrote a record of the v3 store last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    /// An earlier migration, and no host has taken it over.
    Migration,
    /// A host that lives there, or a person.
    Host,
}

/// What becomes of one thing in the v2 store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationStep {
    /// The network configuration.
    Config(MigrationOutcome),
    /// A lease.
    Lease(Lease, MigrationOutcome),
    /// A record that cannot be read: it is set aside, and no host uses it.
    Bad(BadRecord),
}

/// What becomes of a lease or of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationOutcome {
    /// It is copied, to end after this time if it does.
    Copied(Option<Duration>),
    /// The copy that is there is brought up to date, to end after this time if it does.
    Updated(Option<Duration>),
    /// It is there already.
    UpToDate,
    /// Its host lives over v3 already, with this subnet.
    AlreadyMoved(SubnetKey),
    /// It runs out within the next second.
    Expiring,
    /// Something else is in its place, which stays: a person must decide.
    Conflict(String),
}

/// Why a network cannot be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// There is no configuration in the v2 store: the prefix may be wrong, or there is nothing to move.
    #[error("there is no network config to move in {0}")]
    NotConfigured(String),
    /// The configuration cannot be used; correct it first.
    #[error("the network config in {place}: {error}")]
    Config {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        error: ConfigError,
    },
    /// A store does not answer or refuses. What was done until then is right; do it again.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// How often the stores are compared until nothing more is to be copied. Hosts do not come that quickly.
const ROUNDS: usize = 3;

/// Copies the configuration and the leases of a network from the v2 store to the v3 store, and tells each step as it is
/// done.
///
/// With `dry_run` it writes nothing, and tells the steps that it would do.
///
/// # Errors
///
/// [`MigrationError`]; what was told before is done.
pub async fn migrate(
    v2: &Etcd2Registry,
    v3: &Etcd3Registry,
    dry_run: bool,
    tell: &mut (dyn FnMut(MigrationStep) + Send),
) -> Result<(), MigrationError> {
    let place = || v2.describe();
    let config = v2.config().await?.ok_or_else(|| MigrationError::NotConfigured(place()))?;
    NetworkConfig::parse(&config).map_err(|error| MigrationError::Config { place: place(), error })?;
    copy_leases(v2, v3, dry_run, true, tell).await?;
    let fate = match v3.config().await? {
        Some(there) if there == config => MigrationOutcome::UpToDate,
        Some(_) => another_config(v3),
        None if dry_run || v3.copy_config(&config).await? => MigrationOutcome::Copied(None),
        None => another_config(v3),
    };
    tell(MigrationStep::Config(fate));
    for _ in 0..ROUNDS {
        if dry_run || copy_leases(v2, v3, dry_run, false, tell).await? == 0 {
            break;
        }
    }
    Ok(())
}

fn another_config(v3: &Etcd3Registry) -> MigrationOutcome {
    MigrationOutcome::Conflict(format!("{} has another network config, which stays", v3.describe()))
}

/// Copies what is missing or has changed, and tells how many leases that were. Tells about the others, too, if wanted.
async fn copy_leases(
    v2: &Etcd2Registry,
    v3: &Etcd3Registry,
    dry_run: bool,
    tell_all: bool,
    tell: &mut (dyn FnMut(MigrationStep) + Send),
) -> Result<usize, MigrationError> {
    let (originals, bad) = v2.originals().await?;
    let (found, found_bad) = v3.found().await?;
    let mut known = Known::new(found, &found_bad);
    if tell_all {
        bad.into_iter().map(MigrationStep::Bad).for_each(&mut *tell);
    }
    let mut copied = 0;
    for original in originals {
        let action = known.action(&original);
        let fate = match (action, dry_run) {
            (Action::Leave(fate), _) => {
                if tell_all {
                    tell(MigrationStep::Lease(original.lease, fate));
                }
                continue;
            }
            (Action::Copy, true) => MigrationOutcome::Copied(original.left),
            (Action::Replace(_), true) => MigrationOutcome::Updated(original.left),
            (Action::Copy, false) => match v3.copy(&original, None).await? {
                true => MigrationOutcome::Copied(original.left),
                false => overtaken(),
            },
            (Action::Replace(there), false) => match v3.copy(&original, Some(&there)).await? {
                true => MigrationOutcome::Updated(original.left),
                false => overtaken(),
            },
        };
        copied += 1;
        known.took(&original.lease.subnet);
        tell(MigrationStep::Lease(original.lease, fate));
    }
    Ok(copied)
}

/// Somebody wrote between the look and the write.
fn overtaken() -> MigrationOutcome {
    MigrationOutcome::Conflict(
        "it was written over v3 this very moment, and stays as it was written; look again".to_owned(),
    )
}
