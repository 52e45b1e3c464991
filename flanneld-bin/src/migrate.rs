//! `flanneld migrate-etcd`: copies a network from etcd's v2 store to its v3 store.
//!
//! Prints a line for each record, a summary and the next step to standard output, and errors to standard error.

use std::env;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use flannel_core::{SubnetRegistry as _, Term, chain};
use flannel_registry::{MigrationOutcome, MigrationStep, migrate};
use tracing::error;

use crate::Host;
use crate::flags::FlagError;
use crate::go_duration;
use crate::log::LogOptions;
use crate::options::migrate::MigrateOptions;
use crate::{daemon, event_log, log, options, registry};

/// The exit status if a record was not copied because of a conflict.
pub(crate) const CONFLICTS: u8 = 3;

/// Runs the subcommand.
pub(crate) fn run(arguments: Vec<OsString>, _: &Host) -> Result<ExitCode, FlagError> {
    let options = options::migrate::parse(arguments, |variable| env::var_os(variable))?;
    log::start(&LogOptions { verbosity: options.verbosity, ..LogOptions::default() });
    Ok(match daemon::runtime().and_then(|runtime| runtime.block_on(copy(&options))) {
        Ok(summary) => {
            print(&summary.to_string());
            ExitCode::from(if summary.conflicts == 0 { 0 } else { CONFLICTS })
        }
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    })
}

async fn copy(options: &MigrateOptions) -> Result<Summary, String> {
    let open = || Ok((registry::v2(&options.etcd)?, registry::v3(&options.etcd)?));
    let (v2, v3) = open().map_err(|error: flannel_core::BoxError| chain(error.as_ref()))?;
    print(&format!("from {} to {}, key {}", v2.describe(), v3.describe(), options.etcd.prefix));
    let mut summary = Summary { dry_run: options.dry_run, ..Summary::default() };
    let mut on_step = |step: MigrationStep| {
        print(&line(&step, options.dry_run));
        summary.count(&step);
    };
    migrate(&v2, &v3, options.dry_run, &mut on_step).await.map_err(|error| chain(&error))?;
    Ok(summary)
}

fn print(line: &str) {
    // With standard output closed there is nowhere to report the failure.
    let _ = writeln!(io::stdout(), "{line}");
}

fn line(step: &MigrationStep, dry_run: bool) -> String {
    match step {
        MigrationStep::Config(outcome) => format!("network config: {}", describe(outcome, dry_run)),
        MigrationStep::Lease(lease, outcome) => {
            let kind = match lease.term {
                Term::Limited => "lease",
                Term::Permanent => "reservation",
            };
            let (subnet, host) = (event_log::subnets(&lease.subnet), lease.attrs.public);
            format!("{kind} {subnet} of {host}: {}", describe(outcome, dry_run))
        }
        MigrationStep::Bad(record) => format!("{record}: ignored, no host can use it"),
        other => format!("{other:?}"),
    }
}

fn describe(outcome: &MigrationOutcome, dry_run: bool) -> String {
    let would_be = if dry_run { "would be " } else { "" };
    let expiry = |left: &Option<Duration>| match left {
        Some(left) => format!(", expires in {} unless renewed", go_duration::format(*left)),
        None => String::new(),
    };
    match outcome {
        MigrationOutcome::Copied(left) => format!("{would_be}copied{}", expiry(left)),
        MigrationOutcome::Updated(left) => format!("{would_be}copied again{}", expiry(left)),
        MigrationOutcome::UpToDate => "already in the v3 store".to_owned(),
        MigrationOutcome::AlreadyMoved(subnet) => {
            format!("skipped, its host already uses the v3 store and holds {}", event_log::subnets(subnet))
        }
        MigrationOutcome::Expiring => "skipped, it is about to expire".to_owned(),
        MigrationOutcome::Conflict(reason) => format!("NOT copied: {reason}"),
        other => format!("{other:?}"),
    }
}

/// The number of records by outcome.
#[derive(Default)]
struct Summary {
    dry_run: bool,
    copied: usize,
    unchanged: usize,
    bad: usize,
    conflicts: usize,
}

impl Summary {
    fn count(&mut self, step: &MigrationStep) {
        let (MigrationStep::Config(outcome) | MigrationStep::Lease(_, outcome)) = step else {
            self.bad += 1;
            return;
        };
        match outcome {
            MigrationOutcome::Copied(_) | MigrationOutcome::Updated(_) => self.copied += 1,
            MigrationOutcome::UpToDate | MigrationOutcome::AlreadyMoved(_) | MigrationOutcome::Expiring => {
                self.unchanged += 1
            }
            // An outcome that a later library adds does not count as success.
            MigrationOutcome::Conflict(_) | _ => self.conflicts += 1,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dry_run, copied, unchanged, bad, conflicts } = self;
        let verb = if *dry_run { "would be copied" } else { "copied" };
        write!(f, "{copied} {verb}, {unchanged} unchanged, {bad} ignored, {conflicts} in conflict")?;
        f.write_char('\n')?;
        f.write_str(match (dry_run, conflicts) {
            (true, _) => "Nothing was written. Next: run the same command without --dry-run.",
            (false, 0) => {
                "Next: restart flanneld on each host, one by one, with -etcd-api=v3 or auto; then run this command again \
                 to copy leases of hosts that joined the v2 store meanwhile."
            }
            (false, _) => "Next: resolve the conflicts in either store, then run this command again.",
        })
    }
}
