//! How long to wait before trying again, and before renewing.

use std::time::Duration;

/// Waiting times that double from a first to a longest one, each shortened by chance to spread the hosts out.
///
/// ```
/// use std::time::Duration;
/// use flannel_core::Backoff;
///
/// let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(30) };
/// assert_eq!(backoff.delay(0, 0.0), Duration::from_secs(1));
/// assert_eq!(backoff.delay(3, 0.0), Duration::from_secs(8));
/// assert_eq!(backoff.delay(99, 0.0), Duration::from_secs(30));
/// assert_eq!(backoff.delay(3, 0.999_999).as_secs(), 6);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the wait after `failures` earlier ones; `chance`, from 0 to 1, takes up to a quarter off.
    #[must_use]
    pub fn delay(&self, failures: u32, chance: f64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 4.0)
    }
}

/// Returns how long after a renewal to renew again: a third of the time to live, less up to a tenth by `chance`, from
/// 0 to 1. So two attempts may fail before the lease ends, and hosts that started together do not stay together.
#[must_use]
pub fn renew_after(ttl: Duration, chance: f64) -> Duration {
    (ttl / 3).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 10.0)
}

/// Returns how long after a renewal to renew again so that `margin` of the time to live is left at the latest: that time
/// less up to a tenth by `chance`. A margin that leaves no time counts as none that was given.
#[must_use]
pub fn renew_before(ttl: Duration, margin: Duration, chance: f64) -> Duration {
    match ttl.saturating_sub(margin) {
        Duration::ZERO => renew_after(ttl, chance),
        latest => latest.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 10.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_at_a_third_of_its_time_to_live_or_a_little_before() {
        let day = Duration::from_secs(86_400);
        assert_eq!(renew_after(day, 0.0), Duration::from_secs(28_800));
        assert_eq!(renew_after(day, 1.0), Duration::from_secs(25_920));
        assert_eq!(renew_after(day, 7.0), renew_after(day, 1.0));
    }

    #[test]
    fn a_margin_is_left_at_the_latest() {
        let (day, hour) = (Duration::from_secs(86_400), Duration::from_secs(3_600));
        assert_eq!(renew_before(day, hour, 0.0), day - hour);
        assert_eq!(renew_before(day, hour, 1.0), (day - hour).mul_f64(0.9));
        assert_eq!(
            renew_before(hour, hour, 0.0),
            renew_after(hour, 0.0),
            "the store granted less than was asked for"
        );
    }
}
