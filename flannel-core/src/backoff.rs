//! Delays before retries and renewals.

use std::time::Duration;

/// Exponential backoff with jitter, which spreads the attempts of many hosts.
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
    /// The delay after the first failure.
    pub first: Duration,
    /// The maximum delay.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the delay after a failure that follows `failures` earlier ones. `chance`, a random number from 0 to 1, shortens
    /// it by up to a quarter.
    #[must_use]
    pub fn delay(&self, failures: u32, chance: f64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 4.0)
    }
}

/// Returns the time between a renewal and the next one: a third of the TTL, shortened by up to a tenth by `chance`, a random
/// number from 0 to 1. Two attempts may fail before the lease expires, and hosts that started together drift apart.
#[must_use]
pub fn renew_after(ttl: Duration, chance: f64) -> Duration {
    (ttl / 3).mul_f64(1.0 - chance.clamp(0.0, 1.0) / 10.0)
}

/// Returns the time between a renewal and the next one, so that at least `margin` of the TTL remains. `chance` shortens it by
/// up to a tenth. A margin that leaves no time is ignored.
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
    fn a_lease_is_renewed_after_a_third_of_its_ttl_or_slightly_earlier() {
        let day = Duration::from_secs(86_400);
        assert_eq!(renew_after(day, 0.0), Duration::from_secs(28_800));
        assert_eq!(renew_after(day, 1.0), Duration::from_secs(25_920));
        assert_eq!(renew_after(day, 7.0), renew_after(day, 1.0));
    }

    #[test]
    fn the_margin_remains() {
        let (day, hour) = (Duration::from_secs(86_400), Duration::from_secs(3_600));
        assert_eq!(renew_before(day, hour, 0.0), day - hour);
        assert_eq!(renew_before(day, hour, 1.0), (day - hour).mul_f64(0.9));
        assert_eq!(
            renew_before(hour, hour, 0.0),
            renew_after(hour, 0.0),
            "the store granted a shorter TTL than requested"
        );
    }
}
