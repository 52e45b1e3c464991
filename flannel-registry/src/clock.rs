//! How time passes for leases: also while the host is suspended.
//!
//! A registry counts a lease's time to live on its own clock. A host that sleeps through half of it must renew as soon as
//! it wakes, but the clock that the kernel runs timers on, and tokio with it, stands still in suspend
//! (`CLOCK_MONOTONIC`, clock_gettime(2)). So a wait for a renewal is cut into naps, and after each the time is looked at
//! that includes suspend.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::Instant;

use crate::sys;

/// What time it is, counted from any moment on. Never runs backwards.
///
/// A clock that a program runs ahead by itself, as it finds that time was lost:
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
/// assert!(clock.now() >= Duration::from_secs(3600), "a renewal that was due meanwhile is made within a second");
/// # drop(manager);
/// ```
pub trait Clock: Debug + Send + Sync {
    /// The time since that moment.
    fn now(&self) -> Duration;

    /// How long one may sleep by tokio's clock before this one is to be looked at, because it may have run ahead;
    /// `None` if it does not.
    fn nap(&self) -> Option<Duration>;
}

/// Sleeps until it is so late.
pub(crate) async fn sleep_until(clock: &dyn Clock, at: Duration) {
    loop {
        let left = at.saturating_sub(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(clock.nap().map_or(left, |nap| nap.min(left))).await;
    }
}

/// The time that the host was on, and that it was suspended. While it is on, this is tokio's clock, also a paused one.
#[derive(Debug)]
pub struct BootClock {
    started: Instant,
    /// How long the host had been suspended then.
    asleep: Duration,
}

impl BootClock {
    /// Starts at zero.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), asleep: sys::asleep() }
    }
}

impl Default for BootClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for BootClock {
    fn now(&self) -> Duration {
        self.started.elapsed() + sys::asleep().saturating_sub(self.asleep)
    }

    fn nap(&self) -> Option<Duration> {
        // Late by so much after a suspend is nothing beside a time to live, and to wake four times a minute costs nothing.
        Some(Duration::from_secs(15))
    }
}

/// Tokio's clock alone, for simulations of many hosts: it may be paused, and nobody looks at it without need.
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

    /// More than any machine that runs tests was suspended since it was started.
    const OFFSET: u64 = 100_000_000;
    const INSIDE: &str = "FLANNEL_TEST_OF_SUSPEND";

    /// The kernel shows in a time namespace what it shows after a suspend: `CLOCK_BOOTTIME` ahead (time_namespaces(7)).
    #[test]
    fn time_spent_in_suspend_counts() {
        if std::env::var_os(INSIDE).is_some() {
            assert!(sys::asleep().as_secs() >= OFFSET, "{:?}", sys::asleep());
            return;
        }
        assert!(sys::asleep().as_secs() < OFFSET, "{:?}", sys::asleep());
        let mut command = Command::new(flannel_testing::program("unshare", "util-linux").unwrap());
        command
            .args(["--time", "--boottime", &OFFSET.to_string(), "--"])
            .arg(std::env::current_exe().unwrap());
        command.args(["--exact", "clock::tests::time_spent_in_suspend_counts"]).env(INSIDE, "1");
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_host_is_on_the_time_is_tokios() {
        let clock = BootClock::new();
        tokio::time::sleep(Duration::from_secs(1000)).await;
        let off = clock.now().abs_diff(Duration::from_secs(1000));
        assert!(off < Duration::from_secs(1), "{:?}", clock.now());
    }
}
