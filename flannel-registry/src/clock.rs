//! Clocks for lease renewal, which keep counting while the host is suspended.
//!
//! A registry counts a lease's TTL on its own clock. A host that was suspended for half of it must renew as soon as it
//! resumes, but tokio's timers stop in suspend (`CLOCK_MONOTONIC`, clock_gettime(2)). A wait for a renewal is therefore
//! split into naps, and after each nap a clock that includes suspend is read.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::Instant;

use crate::suspend::total_suspended;

/// A monotonic clock with an arbitrary start.
///
/// A clock that a program advances when it finds that time was lost:
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::{Duration, Instant};
/// use flannel_registry::{Clock, RegistryLeaseManager, RegistryLeaseManagerOptions, MemoryRegistry};
///
/// #[derive(Debug)]
/// struct Resumed {
///     started: Instant,
///     lost_seconds: AtomicU64,
/// }
///
/// impl Clock for Resumed {
///     fn now(&self) -> Duration {
///         self.started.elapsed() + Duration::from_secs(self.lost_seconds.load(Ordering::Relaxed))
///     }
///     fn nap(&self) -> Option<Duration> {
///         Some(Duration::from_secs(1))
///     }
/// }
///
/// let clock = Arc::new(Resumed { started: Instant::now(), lost_seconds: AtomicU64::new(0) });
/// let mut options = RegistryLeaseManagerOptions::default();
/// options.clock = clock.clone();
/// let manager = RegistryLeaseManager::with_options(MemoryRegistry::new(), options);
/// clock.lost_seconds.fetch_add(3600, Ordering::Relaxed);
/// assert!(clock.now() >= Duration::from_secs(3600), "a renewal that became due is made within a second");
/// # drop(manager);
/// ```
pub trait Clock: Debug + Send + Sync {
    /// Returns the time since the clock's start.
    fn now(&self) -> Duration;

    /// Returns the longest sleep on tokio's clock before this clock must be read again because it may have advanced
    /// further; `None` if the two never differ.
    fn nap(&self) -> Option<Duration>;
}

/// Sleeps until the clock reaches `at`.
pub(crate) async fn sleep_until(clock: &dyn Clock, at: Duration) {
    loop {
        let left = at.saturating_sub(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(clock.nap().map_or(left, |nap| nap.min(left))).await;
    }
}

/// Counts running and suspended time. While the host runs, it follows tokio's clock, including a paused one.
#[derive(Debug)]
pub struct BootClock {
    started: Instant,
    /// [`total_suspended`] at the start.
    suspended: Duration,
}

impl BootClock {
    /// Starts at zero.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), suspended: total_suspended() }
    }
}

impl Default for BootClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for BootClock {
    fn now(&self) -> Duration {
        self.started.elapsed() + total_suspended().saturating_sub(self.suspended)
    }

    fn nap(&self) -> Option<Duration> {
        // A delay of 15 s after resume is small beside a TTL, and four wake-ups a minute cost nothing.
        Some(Duration::from_secs(15))
    }
}

/// Tokio's clock alone, for simulations of many hosts under a paused clock: it needs no naps.
#[derive(Debug)]
pub struct TokioClock {
    started: Instant,
}

impl TokioClock {
    /// Starts at zero.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn nap(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Longer than any machine that runs tests has been suspended since boot.
    const OFFSET: u64 = 100_000_000;
    const INSIDE: &str = "FLANNEL_TEST_SUSPEND";

    /// In a time namespace `CLOCK_BOOTTIME` can be set ahead, as after a suspend (time_namespaces(7)).
    #[test]
    fn time_spent_in_suspend_counts() {
        if std::env::var_os(INSIDE).is_some() {
            assert!(total_suspended().as_secs() >= OFFSET, "{:?}", total_suspended());
            return;
        }
        assert!(total_suspended().as_secs() < OFFSET, "{:?}", total_suspended());
        let mut command = Command::new(flannel_testing::program("unshare", "util-linux").unwrap());
        command
            .args(["--time", "--boottime", &OFFSET.to_string(), "--"])
            .arg(std::env::current_exe().unwrap());
        command.args(["--exact", "clock::tests::time_spent_in_suspend_counts"]).env(INSIDE, "1");
        let output = command.output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && stdout.contains("1 passed"), "{output:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn boot_clock_follows_tokio_while_the_host_runs() {
        let clock = BootClock::new();
        tokio::time::sleep(Duration::from_secs(1000)).await;
        let error = clock.now().abs_diff(Duration::from_secs(1000));
        assert!(error < Duration::from_secs(1), "{:?}", clock.now());
    }
}
