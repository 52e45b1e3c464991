//! The addresses that the network returns to after it had to leave them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_core::{ExternalInterface, PublicAddrs};

use super::facts::HostFacts;

/// How long the network would return from an address with an on-link prefix. From a single-host address, which may float
/// between hosts, it always returns.
const MEMORY: Duration = Duration::from_secs(600);

/// The addresses of the lease, or those that were selected first.
#[derive(Debug)]
pub(super) struct HomeAddresses {
    addresses: PublicAddrs,
    away_since: Option<Instant>,
}

impl HomeAddresses {
    pub(super) fn new(addresses: PublicAddrs) -> Self {
        Self { addresses, away_since: None }
    }

    /// Returns the addresses to return to from the ones in use.
    pub(super) fn current(
        &mut self,
        facts: &HostFacts,
        known: &ExternalInterface,
        now: Instant,
    ) -> PublicAddrs {
        let used = PublicAddrs { v4: known.v4, v6: known.v6 };
        let home = self.addresses;
        let is_home = (home.v4.is_none() || home.v4 == used.v4) && (home.v6.is_none() || home.v6 == used.v6);
        if is_home {
            self.away_since = None;
            return home;
        }
        let since = *self.away_since.get_or_insert(now);
        let floats = known.addresses().any(|address| is_single_host(facts, address));
        if now.saturating_duration_since(since) >= MEMORY && !floats {
            *self = Self::new(used);
        }
        self.addresses
    }
}

fn is_single_host(facts: &HostFacts, address: IpAddr) -> bool {
    let mut all = facts.links.iter().flat_map(|link| &link.addresses);
    all.any(|facts| facts.address == address && facts.single_host)
}

#[cfg(test)]
mod tests {
    use super::super::facts::{AddressFacts, LinkFacts};
    use super::*;

    fn on(address: &str) -> ExternalInterface {
        let v4 = address.parse().ok();
        ExternalInterface::new("eth0", 2, 1500, PublicAddrs { v4, v6: None })
    }

    fn facts(address: &str, single_host: bool) -> HostFacts {
        let address = address.parse().expect("address");
        let address =
            AddressFacts { address, permanent: true, deprecated: false, temporary: false, single_host };
        let (name, alternative_names) = ("eth0".to_owned(), Vec::new());
        let link = LinkFacts { index: 2, name, alternative_names, mtu: 1500, addresses: vec![address] };
        HostFacts { links: vec![link], ..HostFacts::default() }
    }

    #[test]
    fn the_network_returns_from_a_floating_address_at_any_time_and_from_others_for_a_while() {
        let start = Instant::now();
        let first = on("192.168.9.1").public;
        let mut home = HomeAddresses::new(first);
        let floating = facts("192.168.9.100", true);
        for seconds in [0, 5, 100_000] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(home.current(&floating, &on("192.168.9.100"), now), first, "{seconds}");
        }
        let mut home = HomeAddresses::new(first);
        let (other, used) = (facts("192.168.9.77", false), on("192.168.9.77"));
        assert_eq!(home.current(&other, &used, start), first);
        assert_eq!(home.current(&other, &used, start + MEMORY / 2), first);
        assert_eq!(home.current(&other, &used, start + MEMORY), used.public);
        assert_eq!(home.current(&other, &used, start + MEMORY), used.public);
    }
}
