//! When the next reconcile pass is due after a change, a repair or a failure.
//!
//! It decides only. The clock is tokio's, so tests can pause it.

use std::time::Duration;

use flannel_core::Backoff;
use tokio::time::Instant;

use crate::report::{FirewallReport, RuleChange};

/// The times of the next audit and the next pass.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// When the next audit is due.
    pub(crate) audit_at: Instant,
    /// When the next pass is due, if there is a reason for one.
    pass_at: Option<Instant>,
    repairs: u32,
    last_repair: Option<Instant>,
    failures: u32,
    /// When obstacles may be looked for again. That is costly: hosts have thousands of chains.
    pub(crate) obstacles_at: Instant,
}

impl Schedule {
    /// Starts with everything due.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { audit_at: now, pass_at: None, repairs: 0, last_repair: None, failures: 0, obstacles_at: now }
    }

    /// Takes in the result of a pass.
    pub(crate) fn record(&mut self, report: &FirewallReport, audit_interval: Duration) {
        let now = Instant::now();
        self.audit_at = now + audit_interval;
        self.pass_at = None;
        if report.obstacles.is_some() {
            self.obstacles_at = now + OBSTACLE_INTERVAL;
        }
        self.failures = if report.failures.is_empty() { 0 } else { self.failures.saturating_add(1) };
        if [report.rules, report.tunnel_ports].contains(&RuleChange::Repaired) {
            self.repairs = if self.is_conflict(now) { self.repairs.saturating_add(1) } else { 1 };
            self.last_repair = Some(now);
        }
    }

    /// Returns the time of the next pass. Further reasons do not postpone it.
    pub(crate) fn next_pass(&mut self, is_new: bool) -> Instant {
        let at = Instant::now() + self.delay(is_new);
        *self.pass_at.insert(self.pass_at.map_or(at, |earlier| earlier.min(at)))
    }

    /// Returns the delay before the next pass. A new desired state does not wait for a conflict to end.
    fn delay(&self, is_new: bool) -> Duration {
        if self.failures > 0 {
            return FAILURE_BACKOFF.delay(self.failures - 1, 0.0);
        }
        let is_conflict = !is_new && self.is_conflict(Instant::now());
        REPAIR_BACKOFF.delay(if is_conflict { self.excess_repairs() } else { 0 }, 0.0)
    }

    /// Returns whether a repair now would follow closely on the last one.
    fn is_conflict(&self, now: Instant) -> bool {
        self.last_repair.is_some_and(|last| {
            now - last <= CONFLICT_WINDOW + REPAIR_BACKOFF.delay(self.excess_repairs(), 0.0) * 2
        })
    }

    /// Returns how many of the repairs in a row exceed what a person would undo.
    fn excess_repairs(&self) -> u32 {
        self.repairs.saturating_sub(PROMPT_REPAIRS)
    }
}

/// The delays before repairs. The first collects the parts of one change; the longer ones apply when another program, such
/// as a second flanneld with the same tables, undoes each repair at once.
const REPAIR_BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_secs(60) };
/// The delays after failures.
const FAILURE_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
/// Repairs further apart than this do not belong to one conflict.
const CONFLICT_WINDOW: Duration = Duration::from_secs(10);
/// How often obstacles are looked for while the rules need no pass.
const OBSTACLE_INTERVAL: Duration = Duration::from_secs(60);
/// Repairs in a row that are made without backoff: a person may undo as many.
const PROMPT_REPAIRS: u32 = 10;

#[cfg(test)]
mod tests {
    use flannel_netlink::IpFamily;

    use super::*;
    use crate::nftables::{self, NftablesError};
    use crate::{FirewallError, ProgramError};

    #[tokio::test(start_paused = true)]
    async fn repairs_are_prompt_until_a_program_keeps_undoing_them() {
        let mut schedule = Schedule::new();
        let repaired = FirewallReport { rules: RuleChange::Repaired, ..FirewallReport::default() };
        let mut delays = Vec::new();
        for _ in 0..30 {
            delays.push(schedule.delay(false));
            tokio::time::sleep(schedule.delay(false)).await;
            schedule.record(&repaired, CONFLICT_WINDOW);
        }
        assert!(delays[..10].iter().all(|delay| *delay == REPAIR_BACKOFF.first), "{delays:?}");
        assert!(delays[11..].is_sorted() && delays[29] == REPAIR_BACKOFF.longest, "{delays:?}");
        assert_eq!(schedule.delay(true), REPAIR_BACKOFF.first, "a new desired state does not wait");
        tokio::time::sleep(REPAIR_BACKOFF.longest * 3).await;
        assert_eq!(schedule.delay(false), REPAIR_BACKOFF.first, "the conflict is over");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_further_reasons_do_not_postpone_the_next_pass() {
        let mut schedule = Schedule::new();
        let error = NftablesError::Program(ProgramError::TimedOut { program: "nft" });
        let error = FirewallError::Nftables(nftables::rules_table(IpFamily::V4), error);
        let failed = FirewallReport { failures: vec![error], ..FirewallReport::default() };
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            schedule.record(&failed, CONFLICT_WINDOW);
            assert_eq!(schedule.delay(true), Duration::from_secs(seconds));
        }
        let due = schedule.next_pass(false);
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(schedule.next_pass(false), due);
    }
}
