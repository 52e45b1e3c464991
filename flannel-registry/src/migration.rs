//! Migration of a network from etcd's v2 store to its v3 store while its hosts run.
//!
//! 1. Read both stores and choose an action for each v2 record (`plan`, pure).
//! 2. Copy the leases with their remaining TTLs, and reservations as permanent records.
//! 3. Copy the network config. From then on, hosts that look for it find the v3 store.
//! 4. Repeat, to copy the leases of hosts that joined in v2 meanwhile.
//!
//! Nothing is removed from either store, and a record that a host wrote in v3 is never overwritten, so a migration can be
//! repeated any number of times.

mod plan;
pub(crate) mod record;

use flannel_core::{BadRecord, ConfigError, Lease, NetworkConfig, RegistryError, SubnetRegistry};

use crate::{Etcd2Registry, Etcd3Registry};
use plan::{MigrationAction, TargetStore};
pub use record::MigrationOutcome;

/// One step of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MigrationStep {
    /// The network config.
    Config(MigrationOutcome),
    /// A lease.
    Lease(Lease, MigrationOutcome),
    /// A record that cannot be parsed; hosts ignore it.
    Bad(BadRecord),
}

/// Why a migration failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The v2 store has no network config: the prefix may be wrong, or there is nothing to migrate.
    #[error("no network config in {0}")]
    NotConfigured(String),
    /// The network config is invalid.
    #[error("invalid network config in {place}: {error}")]
    Config {
        /// The store.
        place: String,
        /// The defect.
        error: ConfigError,
    },
    /// A store did not answer or refused. The steps so far are valid; run the migration again.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The maximum number of comparisons of the stores after the config was copied. Hosts do not join more quickly.
const ROUNDS: usize = 3;

/// Copies the network config and the leases of a network from the v2 store to the v3 store, and reports each step.
///
/// With `dry_run` it writes nothing and reports the steps that it would take.
///
/// # Errors
///
/// Returns [`MigrationError`]; the steps reported before are done.
pub async fn migrate(
    v2: &Etcd2Registry,
    v3: &Etcd3Registry,
    dry_run: bool,
    report: &mut (dyn FnMut(MigrationStep) + Send),
) -> Result<(), MigrationError> {
    let place = || v2.describe();
    let config = v2.config().await?.ok_or_else(|| MigrationError::NotConfigured(place()))?;
    NetworkConfig::parse(&config).map_err(|error| MigrationError::Config { place: place(), error })?;
    copy_leases(v2, v3, dry_run, true, report).await?;
    let outcome = match v3.config().await? {
        Some(there) if there == config => MigrationOutcome::UpToDate,
        Some(_) => config_conflict(v3),
        None if dry_run || v3.copy_config(&config).await? => MigrationOutcome::Copied(None),
        None => config_conflict(v3),
    };
    report(MigrationStep::Config(outcome));
    for _ in 0..ROUNDS {
        if dry_run || copy_leases(v2, v3, dry_run, false, report).await? == 0 {
            break;
        }
    }
    Ok(())
}

fn config_conflict(v3: &Etcd3Registry) -> MigrationOutcome {
    MigrationOutcome::Conflict(format!("{} has a different network config, which is kept", v3.describe()))
}

/// Copies missing and changed records, and returns their number. Reports the other records only with `report_all`.
async fn copy_leases(
    v2: &Etcd2Registry,
    v3: &Etcd3Registry,
    dry_run: bool,
    report_all: bool,
    report: &mut (dyn FnMut(MigrationStep) + Send),
) -> Result<usize, MigrationError> {
    let (sources, bad) = v2.source_records().await?;
    let (targets, bad_targets) = v3.target_records().await?;
    let mut target = TargetStore::new(targets, &bad_targets);
    if report_all {
        bad.into_iter().map(MigrationStep::Bad).for_each(&mut *report);
    }
    let mut copied = 0;
    for source in sources {
        let action = target.action(&source);
        let outcome = match (action, dry_run) {
            (MigrationAction::Leave(outcome), _) => {
                if report_all {
                    report(MigrationStep::Lease(source.lease, outcome));
                }
                continue;
            }
            (MigrationAction::Copy, true) => MigrationOutcome::Copied(source.ttl),
            (MigrationAction::Replace(_), true) => MigrationOutcome::Updated(source.ttl),
            (MigrationAction::Copy, false) => match v3.copy(&source, None).await? {
                true => MigrationOutcome::Copied(source.ttl),
                false => concurrent_write(),
            },
            (MigrationAction::Replace(copy), false) => match v3.copy(&source, Some(&copy)).await? {
                true => MigrationOutcome::Updated(source.ttl),
                false => concurrent_write(),
            },
        };
        copied += 1;
        target.reserve(&source.lease.subnet);
        report(MigrationStep::Lease(source.lease, outcome));
    }
    Ok(copied)
}

/// Another writer was faster.
fn concurrent_write() -> MigrationOutcome {
    MigrationOutcome::Conflict(
        "another writer changed the v3 record at the same time; run the migration again".to_owned(),
    )
}
