//! `flanneld migrate-etcd`: moves a network from etcd's v2 store to its v3 store, and says what it does.
//!
//! Each step is a line on standard output, and so is the end: what there was, and what to do next. Errors go to standard
//! error.
//!
//! | exit status | |
//! |---|---|
//! | 0 | everything that can be read is in the v3 store, or would be |
//! | 1 | a store does not answer or refuses, or there is nothing to move; do it again |
//! | 2 | wrong flags |
//! | 3 | something else is in the place of a lease or of the configuration, and was left there |

use std::env;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use flannel_core::{SubnetRegistry as _, Term, chain};
use flannel_registry::{MigrationOutcome, MigrationStep, migrate};
use tracing::error;

use crate::flags::FlagError;
use crate::go_duration;
use crate::log::LogOptions;
use crate::options::migrate::MigrateOptions;
use crate::{daemon, event_log, log, options, registry};

/// The exit status when something was left for a person to decide.
pub(crate) const UNDECIDED: u8 = 3;

/// Moves the network, or says how.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<ExitCode, FlagError> {
    let options = options::migrate::parse(arguments, |variable| env::var_os(variable))?;
    log::start(&LogOptions { verbosity: options.verbosity, ..LogOptions::default() });
    Ok(match daemon::runtime().and_then(|runtime| runtime.block_on(moved(&options))) {
        Ok(summary) => {
            say(&summary.to_string());
            ExitCode::from(if summary.conflicts == 0 { 0 } else { UNDECIDED })
        }
        Err(reason) => {
            error!("{reason}");
            ExitCode::FAILURE
        }
    })
}

async fn moved(options: &MigrateOptions) -> Result<Summary, String> {
    let opened = || Ok((registry::v2(&options.etcd)?, registry::v3(&options.etcd)?));
    let (v2, v3) = opened().map_err(|error: flannel_core::BoxError| chain(error.as_ref()))?;
    say(&format!("from {} to {}, key {}", v2.describe(), v3.describe(), options.etcd.prefix));
    let mut summary = Summary { dry_run: options.dry_run, ..Summary::default() };
    let mut tell = |step: MigrationStep| {
        say(&line(&step, options.dry_run));
        summary.count(&step);
    };
    migrate(&v2, &v3, options.dry_run, &mut tell).await.map_err(|error| chain(&error))?;
    Ok(summary)
}

/// Writes a line for people and scripts.
fn say(line: &str) {
    // A closed standard output leaves nobody to tell.
    let _ = writeln!(io::stdout(), "{line}");
}

/// What a step is in words.
fn line(step: &MigrationStep, dry_run: bool) -> String {
    match step {
        MigrationStep::Config(fate) => format!("network config: {}", words(fate, dry_run)),
        MigrationStep::Lease(lease, fate) => {
            let kind = match lease.term {
                Term::Limited => "lease",
                Term::Permanent => "reservation",
            };
            let (subnet, holder) = (event_log::subnets(&lease.subnet), lease.attrs.public);
            format!("{kind} {subnet} of {holder}: {}", words(fate, dry_run))
        }
        MigrationStep::Bad(record) => format!("{record}: set aside, no host uses it"),
        other => format!("{other:?}"),
    }
}

fn words(fate: &MigrationOutcome, dry_run: bool) -> String {
    let would_be = if dry_run { "would be " } else { "" };
    let ends = |left: &Option<Duration>| match left {
        Some(left) => format!(", ends in {} unless it is renewed", go_duration::format(*left)),
        None => String::new(),
    };
    match fate {
        MigrationOutcome::Copied(left) => format!("{would_be}copied{}", ends(left)),
        MigrationOutcome::Updated(left) => format!("{would_be}copied again{}", ends(left)),
        MigrationOutcome::UpToDate => "is there already".to_owned(),
        MigrationOutcome::AlreadyMoved(subnet) => {
            format!("left alone, its host uses the v3 store already and holds {}", event_log::subnets(subnet))
        }
        MigrationOutcome::Expiring => "left alone, it runs out now".to_owned(),
        MigrationOutcome::Conflict(reason) => format!("NOT copied: {reason}"),
        other => format!("{other:?}"),
    }
}

/// How many of each there were.
#[derive(Default)]
struct Summary {
    dry_run: bool,
    copied: usize,
    there: usize,
    bad: usize,
    conflicts: usize,
}

impl Summary {
    fn count(&mut self, step: &MigrationStep) {
        let (MigrationStep::Config(fate) | MigrationStep::Lease(_, fate)) = step else {
            self.bad += 1;
            return;
        };
        match fate {
            MigrationOutcome::Copied(_) | MigrationOutcome::Updated(_) => self.copied += 1,
            // A lease that ends now is gone from either store.
            MigrationOutcome::UpToDate | MigrationOutcome::AlreadyMoved(_) | MigrationOutcome::Expiring => {
                self.there += 1
            }
            // Nothing counts as moved of which it is not known.
            MigrationOutcome::Conflict(_) | _ => self.conflicts += 1,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dry_run, copied, there, bad, conflicts } = self;
        let (verb, not) = if *dry_run { ("would be copied", "would not be") } else { ("copied", "not") };
        write!(f, "{copied} {verb}, {there} left as they are, {bad} set aside, {conflicts} {not} copied")?;
        f.write_char('\n')?;
        f.write_str(match (dry_run, conflicts) {
            (true, _) => "Nothing was written. Next: run the same without --dry-run.",
            (false, 0) => {
                "Next: start flanneld again on each host, one after the other, with -etcd-api=v3 or auto; then run this \
                 again to see that no host came to the v2 store meanwhile."
            }
            (false, _) => "Next: decide about what was not copied, in either store, and run this again.",
        })
    }
}
