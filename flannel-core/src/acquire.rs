//! How a host gets its lease, decided from what it knows: no call is made here.

use std::sync::Arc;

use crate::allocate::choose;
use crate::{Lease, LeaseSet, NetworkConfig, PublicAddrs, SubnetKey};

/// What a host brings when it asks for a lease.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// Under which addresses the host is known.
    pub public: PublicAddrs,
    /// The subnet that it had before, as far as it remembers.
    pub previous: Option<SubnetKey>,
    /// How many attempts failed so far, because others were faster.
    pub attempt: u32,
}

/// The next step towards a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The host holds this lease already: write what it says now.
    Reuse(Arc<Lease>),
    /// The host holds this lease, but the network's configuration no longer offers it: remove it, then ask again.
    Discard(Arc<Lease>),
    /// Nobody holds this subnet: create it. The host had it before.
    TakeBack(SubnetKey),
    /// Nobody holds this subnet: create it.
    Take(SubnetKey),
    /// Every subnet is taken.
    OutOfSubnets,
}

impl Claim<'_> {
    /// Decides the next step, given all leases.
    ///
    /// A lease held under the host's own public address comes first (among several, the one it had before, then the
    /// lowest), then the previous subnet if it is free, then the one that the address points at, then any free one (see
    /// [`choose`]). `pick` answers with a number below the one it is given.
    pub fn next_step(&self, leases: &LeaseSet, pick: &mut dyn FnMut(usize) -> usize) -> Step {
        let own = || leases.leases().filter(|lease| lease.is_held_by(&self.public));
        let remembered = own().find(|lease| Some(lease.subnet) == self.previous && self.fits(&lease.subnet));
        if let Some(lease) = remembered.or_else(|| own().find(|lease| self.fits(&lease.subnet))) {
            return Step::Reuse(Arc::clone(lease));
        }
        if let Some(lease) = own().next() {
            return Step::Discard(Arc::clone(lease));
        }
        let taken: Vec<SubnetKey> = leases.taken().collect();
        let is_free = |subnet: &SubnetKey| !taken.iter().any(|other| other.overlaps(subnet));
        // Somebody else was faster if an attempt failed, so the memory is tried once only.
        if let Some(previous) =
            self.previous.filter(|subnet| self.attempt == 0 && self.fits(subnet) && is_free(subnet))
        {
            return Step::TakeBack(previous);
        }
        // So is the place that the address points at: whoever is there now stays.
        let place = Some(self.public).filter(|_| self.attempt == 0);
        choose(self.config, &taken, place, pick).map_or(Step::OutOfSubnets, Step::Take)
    }

    fn fits(&self, subnet: &SubnetKey) -> bool {
        self.config.offers(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeaseAttrs, RegistryEvent, Revision, Snapshot, Term};
    use std::net::Ipv4Addr;

    const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

    fn lease(subnet: &str, holder: Ipv4Addr) -> Lease {
        Lease {
            subnet: subnet.parse().unwrap(),
            attrs: LeaseAttrs::new(holder.into()),
            revision: Revision(1),
            term: Term::Limited,
        }
    }

    /// Decides with the first free subnet always picked.
    fn step(previous: Option<&str>, leases: &[Lease], attempt: u32) -> Step {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let previous = previous.map(|text| text.parse().unwrap());
        let mut set = LeaseSet::default();
        set.apply(RegistryEvent::Snapshot(Snapshot {
            leases: leases.iter().cloned().map(Arc::new).collect(),
            ..Snapshot::default()
        }));
        Claim { config: &config, public: ME.into(), previous, attempt }.next_step(&set, &mut |_| 0)
    }

    #[test]
    fn a_lease_under_the_own_address_is_used_again() {
        let leases = [lease("10.5.1.0-24", OTHER), lease("10.5.7.0-24", ME)];
        assert_eq!(step(None, &leases, 0), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step(Some("10.5.9.0-24"), &leases, 0), Step::Reuse(leases[1].clone().into()));
    }

    #[test]
    fn of_two_own_leases_the_remembered_one_is_used_else_the_lowest() {
        let leases = [lease("10.5.3.0-24", ME), lease("10.5.7.0-24", ME)];
        assert_eq!(step(Some("10.5.7.0-24"), &leases, 0), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step(None, &leases, 0), Step::Reuse(leases[0].clone().into()));
    }

    #[test]
    fn an_own_lease_that_the_network_no_longer_offers_is_discarded() {
        let leases = [lease("10.9.1.0-24", ME)];
        assert_eq!(step(None, &leases, 0), Step::Discard(leases[0].clone().into()));
        let leases = [lease("10.5.1.0-25", ME), lease("10.5.7.0-24", ME)];
        assert_eq!(step(None, &leases, 0), Step::Reuse(leases[1].clone().into()));
    }

    #[test]
    fn the_previous_subnet_is_taken_back_if_it_is_free_and_offered() {
        assert_eq!(step(Some("10.5.9.0-24"), &[], 0), Step::TakeBack("10.5.9.0-24".parse().unwrap()));
        assert_eq!(step(Some("10.9.9.0-24"), &[], 0), step(None, &[], 0));
        let leases = [lease("10.5.9.0-24", OTHER)];
        assert_eq!(step(Some("10.5.9.0-24"), &leases, 0), step(None, &leases, 0));
        assert_eq!(step(Some("10.5.9.0-24"), &[], 1), Step::Take("10.5.1.0-24".parse().unwrap()));
    }

    #[test]
    fn the_place_of_the_own_address_is_tried_once_and_never_when_it_is_taken() {
        let first_free = || Step::Take("10.5.1.0-24".parse().unwrap());
        let Step::Take(place) = step(None, &[], 0) else { panic!("a subnet is free") };
        assert_ne!(Step::Take(place), first_free());
        assert_eq!(step(None, &[lease(&place.to_string(), OTHER)], 0), first_free());
        assert_eq!(step(None, &[], 1), first_free());
    }

    #[test]
    fn a_full_network_has_nothing_to_take() {
        let leases = [lease("10.5.0.0-16", OTHER)];
        assert_eq!(step(None, &leases, 0), Step::OutOfSubnets);
    }
}
