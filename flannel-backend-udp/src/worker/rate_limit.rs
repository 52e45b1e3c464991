//! A rate limit for ICMP errors (RFC 1812, section 4.3.2.8; RFC 4443, section 2.4 (f)).

use std::time::{Duration, Instant};

/// The most errors per second.
const BURST: u32 = 100;

#[derive(Debug)]
pub(crate) struct RateLimit {
    left: u32,
    since: Instant,
}

impl RateLimit {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Returns whether another error may be sent, and counts it.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self::new(now);
        }
        let allows = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_a_hundred_a_second_are_sent() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let allowed = |limit: &mut RateLimit, at| (0..1000).filter(|_| limit.allows(start + at)).count();
        assert_eq!(allowed(&mut limit, Duration::ZERO), 100);
        assert_eq!(allowed(&mut limit, Duration::from_millis(999)), 0);
        assert_eq!(allowed(&mut limit, Duration::from_secs(1)), 100);
    }
}
