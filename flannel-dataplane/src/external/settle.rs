//! Following the external interface while the daemon runs, as [`select::follow`] decides.

use std::time::{Duration, Instant};

use flannel_core::{BackendError, ExternalInterface};
use flannel_netlink::Namespace;
use futures::stream::BoxStream;
use tracing::{info, warn};

use super::facts::{self, Wanted};
use super::follow::{Look, follow_external};
use super::select::{self, Basis, Chosen, Families, Followed, Wishes};

/// For so long a route must leave by another interface before it is followed there: it does so for a moment
/// when cables are pulled and tunnels come up.
const SETTLED: Duration = Duration::from_secs(3);

/// Gives what becomes of the interface that was chosen for these families.
pub fn changes(
    namespace: Namespace,
    wishes: Wishes,
    families: Families,
    chosen: Chosen,
) -> Result<BoxStream<'static, ExternalInterface>, BackendError> {
    let Chosen { external, basis } = chosen;
    let wanted = Wanted {
        default_routes: basis == Basis::DefaultRoute,
        way_to: wishes.can_reach.filter(|_| basis == Basis::Way),
    };
    let mut patience = Patience::default();
    follow_external(namespace, external, move |known| match facts::read(wanted) {
        Ok(facts) => {
            let followed = select::follow(&facts, &wishes, families, basis, known);
            patience.judge(followed, known, Instant::now())
        }
        Err(error) => {
            warn!("The interfaces cannot be read: {}", flannel_core::chain(&error));
            Look::Later(SETTLED)
        }
    })
}

/// Waits for what is likely to pass, and says once what is missing.
#[derive(Debug, Default)]
struct Patience {
    missing: Option<String>,
    /// The interface that the default route leaves by now, and since when.
    candidate: Option<(String, Instant)>,
}

impl Patience {
    fn judge(&mut self, followed: Followed, known: &ExternalInterface, now: Instant) -> Look {
        let Followed { external, missing } = followed;
        self.say(missing, known);
        if external.name == known.name || is_another_name(&external, known) {
            self.candidate = None;
            return Look::Found(external);
        }
        let since = match self.candidate.take() {
            Some((name, since)) if name == external.name => since,
            _ => {
                info!("{} takes the place of {}, if it stays so", external.name, known.name);
                now
            }
        };
        let waited = now.saturating_duration_since(since);
        if waited >= SETTLED {
            return Look::Found(external);
        }
        self.candidate = Some((external.name, since));
        Look::Later(SETTLED - waited)
    }

    fn say(&mut self, missing: Option<String>, known: &ExternalInterface) {
        if missing == self.missing {
            return;
        }
        match &missing {
            Some(missing) => {
                let addresses: Vec<String> = known.addresses().map(|address| address.to_string()).collect();
                warn!("{missing}; going on with {} at {}", known.name, addresses.join(" and "));
            }
            None => info!("{} has what was missing", known.name),
        }
        self.missing = missing;
    }
}

/// Tells whether an interface has the same addresses under another name: then there is nothing to wait for.
fn is_another_name(external: &ExternalInterface, known: &ExternalInterface) -> bool {
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

    #[test]
    fn another_interface_is_followed_only_when_the_default_route_stayed_there() {
        let (known, start) = (on("eth0", 1), Instant::now());
        let mut patience = Patience::default();
        let mut judge = |external: ExternalInterface, seconds: u64| {
            let followed = Followed { external, missing: None };
            patience.judge(followed, &known, start + Duration::from_secs(seconds))
        };
        let later = |seconds| Look::Later(Duration::from_secs(seconds));
        assert_eq!(judge(on("eth1", 2), 0), later(3));
        assert_eq!(judge(on("eth1", 2), 2), later(1));
        assert_eq!(judge(on("eth0", 1), 2), Look::Found(on("eth0", 1)), "it came back");
        assert_eq!(judge(on("eth1", 2), 3), later(3), "from the beginning");
        assert_eq!(judge(on("wlan0", 3), 5), later(3), "yet another one");
        assert_eq!(judge(on("wlan0", 3), 8), Look::Found(on("wlan0", 3)));
    }

    #[test]
    fn the_same_interface_and_the_same_address_are_followed_at_once() {
        let known = on("eth0", 1);
        let mut patience = Patience::default();
        for external in [on("eth0", 7), on("br0", 1)] {
            let followed = Followed { external: external.clone(), missing: None };
            assert_eq!(patience.judge(followed, &known, Instant::now()), Look::Found(external));
        }
    }
}
