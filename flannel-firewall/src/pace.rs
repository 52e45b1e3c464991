//! When to look at the rules: how soon after a change, a repair or a failure. Decides only; the clock is tokio's, which tests
//! stop.

use std::time::Duration;

use flannel_core::Backoff;
use tokio::time::Instant;

use crate::outcome::{Kept, Pass};

/// When to look.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When the next audit is due.
    pub(crate) audit_at: Instant,
    /// When the next pass is due, if there is a reason for one.
    pass_at: Option<Instant>,
    repairs: u32,
    last_repair: Option<Instant>,
    failures: u32,
    /// When it may be looked for obstacles again: hosts have thousands of chains.
    pub(crate) obstacles_at: Instant,
}

impl Pace {
    /// Everything is due now.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { audit_at: now, pass_at: None, repairs: 0, last_repair: None, failures: 0, obstacles_at: now }
    }

    /// Remembers how a pass went.
    pub(crate) fn note(&mut self, pass: &Pass, audit_every: Duration) {
        let now = Instant::now();
        self.audit_at = now + audit_every;
        self.pass_at = None;
        if pass.obstacles.is_some() {
            self.obstacles_at = now + OBSTACLES_EVERY;
        }
        self.failures = if pass.failures.is_empty() { 0 } else { self.failures.saturating_add(1) };
        if [pass.rules, pass.tunnel].contains(&Kept::Repaired) {
            self.repairs = if self.is_quarrel(now) { self.repairs.saturating_add(1) } else { 1 };
            self.last_repair = Some(now);
        }
    }

    /// The time of the next pass. Reasons that come after the first one do not put it off.
    pub(crate) fn next_pass(&mut self, is_new: bool) -> Instant {
        let at = Instant::now() + self.pause(is_new);
        *self.pass_at.insert(self.pass_at.map_or(at, |earlier| earlier.min(at)))
    }

    /// How long to wait before a pass for which there is a reason. What is wanted newly never waits for a quarrel.
    fn pause(&self, is_new: bool) -> Duration {
        if self.failures > 0 {
            return FAILURES.delay(self.failures - 1, 0.0);
        }
        let is_quarrel = !is_new && self.is_quarrel(Instant::now());
        REPAIRS.delay(if is_quarrel { self.excess() } else { 0 }, 0.0)
    }

    /// Tells whether a repair now would follow closely on the last one.
    fn is_quarrel(&self, now: Instant) -> bool {
        self.last_repair.is_some_and(|last| now - last <= CALM + REPAIRS.delay(self.excess(), 0.0) * 2)
    }

    /// How many repairs in a row were more than a person would undo.
    fn excess(&self) -> u32 {
        self.repairs.saturating_sub(PATIENCE)
    }
}

/// What a person or program does to a rule set comes in several parts; and the pauses when somebody undoes each repair at
/// once, as a second flanneld with the same tables does.
const REPAIRS: Backoff = Backoff { first: Duration::from_millis(20), longest: Duration::from_secs(60) };
/// The pauses after failures.
const FAILURES: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
/// A repair so long after the last one is a new story.
const CALM: Duration = Duration::from_secs(10);
/// How often it is looked for what stands in the way, unless rules are looked at anyway.
const OBSTACLES_EVERY: Duration = Duration::from_secs(60);
/// A person may undo as many repairs in a row without being taken for a program.
const PATIENCE: u32 = 10;

#[cfg(test)]
mod tests {
    use flannel_netlink::IpFamily;

    use super::*;
    use crate::nftables::{self, NftablesError};
    use crate::{FirewallError, ProgramError};

    #[tokio::test(start_paused = true)]
    async fn what_a_person_undoes_is_repaired_at_once_and_a_program_that_always_undoes_it_waits_longer_each_time()
     {
        let mut pace = Pace::new();
        let repaired = Pass { rules: Kept::Repaired, ..Pass::default() };
        let mut pauses = Vec::new();
        for _ in 0..30 {
            pauses.push(pace.pause(false));
            tokio::time::sleep(pace.pause(false)).await;
            pace.note(&repaired, CALM);
        }
        assert!(pauses[..10].iter().all(|pause| *pause == REPAIRS.first), "{pauses:?}");
        assert!(pauses[11..].is_sorted() && pauses[29] == REPAIRS.longest, "{pauses:?}");
        assert_eq!(pace.pause(true), REPAIRS.first, "what is wanted newly does not wait");
        tokio::time::sleep(REPAIRS.longest * 3).await;
        assert_eq!(pace.pause(false), REPAIRS.first, "it is calm again");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_and_reasons_that_come_meanwhile_put_nothing_off() {
        let mut pace = Pace::new();
        let error = NftablesError::Program(ProgramError::TimedOut { program: "nft" });
        let error = FirewallError::Nftables(nftables::rules_table(IpFamily::V4), error);
        let failed = Pass { failures: vec![error], ..Pass::default() };
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            pace.note(&failed, CALM);
            assert_eq!(pace.pause(true), Duration::from_secs(seconds));
        }
        let due = pace.next_pass(false);
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(pace.next_pass(false), due);
    }
}
