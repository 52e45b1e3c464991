//! Damping of changes: a default route that moves to another interface must stay there for a while, and so must an address
//! that replaces a lost one.

use std::time::{Duration, Instant};

use flannel_core::ExternalInterface;
use tracing::{info, warn};

use super::track::TrackedState;
use super::watch::Observation;

/// How long a route must use another interface before it is followed there. Routes move for a moment when cables are
/// pulled and tunnels come up. An address is gone for a moment when a link flaps or a DHCP client restarts.
pub(super) const SETTLE_TIME: Duration = Duration::from_secs(3);

/// Delays the move to another interface, and logs once what is missing.
#[derive(Debug, Default)]
pub(super) struct MoveDamping {
    missing: Option<String>,
    /// The interface that the route uses now, and since when.
    candidate: Option<(String, Instant)>,
    /// Since when the interface lacks an address that the network uses, or has a better one.
    readdressing_since: Option<Instant>,
}

impl MoveDamping {
    /// Returns what to report of a state.
    pub(super) fn judge(
        &mut self,
        state: TrackedState,
        known: &ExternalInterface,
        now: Instant,
    ) -> Observation {
        let TrackedState { external, missing, is_lost } = state;
        let missing = missing
            .map(|missing| format!("{missing}; continuing with {} at {}", known.name, addresses(known)));
        let lost = missing.clone().filter(|_| is_lost);
        // The network reports a lost interface.
        let is_complete = missing.is_none();
        self.log(missing.filter(|_| !is_lost), known);
        if has_same_addresses(&external, known) {
            self.candidate = None;
            self.readdressing_since = if is_complete { None } else { self.readdressing_since.or(Some(now)) };
            return Observation::Current { external, lost };
        }
        if external.name == known.name {
            self.candidate = None;
            return match self.readdressing_pause(&external, known, now) {
                Some(pause) => Observation::Unsettled(pause),
                None => Observation::Current { external, lost },
            };
        }
        let since = match self.candidate.take() {
            Some((name, since)) if name == external.name => since,
            _ => {
                let seconds = SETTLE_TIME.as_secs();
                info!(
                    "the route moved from {} to {}; following it if it stays there for {seconds}s",
                    known.name, external.name
                );
                now
            }
        };
        let waited = now.saturating_duration_since(since);
        if waited >= SETTLE_TIME {
            return Observation::Current { external, lost };
        }
        self.candidate = Some((external.name, since));
        Observation::Unsettled(SETTLE_TIME - waited)
    }

    /// Returns how long to wait before other addresses of the interface are followed, if at all.
    fn readdressing_pause(
        &mut self,
        external: &ExternalInterface,
        known: &ExternalInterface,
        now: Instant,
    ) -> Option<Duration> {
        let is_replaced = (known.v4.is_some() && external.v4 != known.v4)
            || (known.v6.is_some() && external.v6 != known.v6);
        if !is_replaced {
            return None;
        }
        if self.readdressing_since.is_none() {
            info!(
                "the address of {} changed from {} to {}; following it if it stays for {}s",
                known.name,
                addresses(known),
                addresses(external),
                SETTLE_TIME.as_secs()
            );
        }
        let waited = now.saturating_duration_since(*self.readdressing_since.get_or_insert(now));
        if waited < SETTLE_TIME {
            return Some(SETTLE_TIME - waited);
        }
        self.readdressing_since = None;
        None
    }

    fn log(&mut self, missing: Option<String>, known: &ExternalInterface) {
        if missing == self.missing {
            return;
        }
        match &missing {
            Some(missing) => warn!("{missing}"),
            None => info!("{} is complete again", known.name),
        }
        self.missing = missing;
    }
}

fn addresses(external: &ExternalInterface) -> String {
    let addresses: Vec<String> = external.addresses().map(|address| address.to_string()).collect();
    addresses.join(" and ")
}

/// Returns true if the addresses moved to an interface with another name, for which there is no need to wait.
fn has_same_addresses(external: &ExternalInterface, known: &ExternalInterface) -> bool {
    (external.v4, external.v6) == (known.v4, known.v6)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn on(name: &str, last: u8) -> ExternalInterface {
        let v4 = Ipv4Addr::new(10, 0, 0, last);
        let index = u32::from(last);
        ExternalInterface::new(name, index, 1500, v4)
    }

    fn current(external: ExternalInterface) -> Observation {
        Observation::Current { external, lost: None }
    }

    #[test]
    fn a_route_is_followed_to_another_interface_once_it_stays_there() {
        let (known, start) = (on("eth0", 1), Instant::now());
        let mut damping = MoveDamping::default();
        let mut judge = |external: ExternalInterface, seconds: u64| {
            let state = TrackedState { external, missing: None, is_lost: false };
            damping.judge(state, &known, start + Duration::from_secs(seconds))
        };
        let unsettled = |seconds| Observation::Unsettled(Duration::from_secs(seconds));
        assert_eq!(judge(on("eth1", 2), 0), unsettled(3));
        assert_eq!(judge(on("eth1", 2), 2), unsettled(1));
        assert_eq!(judge(on("eth0", 1), 2), current(on("eth0", 1)), "it came back");
        assert_eq!(judge(on("eth1", 2), 3), unsettled(3), "the wait starts again");
        assert_eq!(judge(on("wlan0", 3), 5), unsettled(3), "a third interface");
        assert_eq!(judge(on("wlan0", 3), 8), current(on("wlan0", 3)));
    }

    #[test]
    fn a_new_name_or_an_address_of_another_family_is_followed_at_once() {
        let known = on("eth0", 1);
        let mut damping = MoveDamping::default();
        let mut dual = known.clone();
        dual.v6 = "fd00::1".parse().ok();
        for external in [dual, on("br0", 1)] {
            let state = TrackedState { external: external.clone(), missing: None, is_lost: false };
            assert_eq!(damping.judge(state, &known, Instant::now()), current(external));
        }
    }

    #[test]
    fn another_address_is_followed_once_the_first_one_stays_away() {
        let (known, start) = (on("eth0", 1), Instant::now());
        let mut damping = MoveDamping::default();
        let mut judge = |external: ExternalInterface, missing: bool, seconds: u64| {
            let missing = missing.then(|| "no address".to_owned());
            let state = TrackedState { external, missing, is_lost: false };
            damping.judge(state, &known, start + Duration::from_secs(seconds))
        };
        let unsettled = |seconds| Observation::Unsettled(Duration::from_secs(seconds));
        assert_eq!(judge(on("eth0", 7), false, 0), unsettled(3));
        assert_eq!(judge(on("eth0", 1), false, 1), current(on("eth0", 1)), "it came back");
        assert_eq!(judge(on("eth0", 7), false, 2), unsettled(3), "the wait starts again");
        assert_eq!(judge(on("eth0", 8), false, 4), unsettled(1), "a third address");
        assert_eq!(judge(on("eth0", 8), false, 5), current(on("eth0", 8)));
        assert_eq!(judge(on("eth0", 1), true, 10), current(on("eth0", 1)), "without any address");
        assert_eq!(judge(on("eth0", 7), false, 12), unsettled(1), "the wait starts with the loss");
        assert_eq!(judge(on("eth0", 7), false, 13), current(on("eth0", 7)));
    }
}
