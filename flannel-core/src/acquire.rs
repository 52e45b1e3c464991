//! How a host gets its lease, decided from what it knows: no call is made here.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::allocate::choose;
use crate::{Lease, LeaseMatch, LeaseSet, NetworkConfig, NodeId, PublicAddrs, SubnetKey};

/// What a host brings when it asks for a lease.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// Under which addresses the host is known.
    pub public: PublicAddrs,
    /// Its id, if it has one.
    pub node: Option<NodeId>,
    /// The ids of other hosts that live under the same address: their leases are not this host's.
    pub others: &'a BTreeSet<NodeId>,
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
    /// A lease of the host's own comes first (see [`own`](Self::own)), then the previous subnet if it is free, then the
    /// one that the address points at, then any free one (see [`choose`]). `pick` answers with a number below the one it
    /// is given.
    pub fn next_step(&self, leases: &LeaseSet, pick: &mut dyn FnMut(usize) -> usize) -> Step {
        let own = self.own(leases.leases().map(|lease| &**lease));
        if let Some((_, lease)) = own.iter().find(|(_, lease)| self.fits(&lease.subnet)) {
            return Step::Reuse(Arc::new((*lease).clone()));
        }
        // What may be another host's is left to end by itself.
        if let Some((_, lease)) = own.first().filter(|(tie, _)| *tie != LeaseMatch::AddressOfOtherId) {
            return Step::Discard(Arc::new((*lease).clone()));
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

    /// Returns the leases that may be the host's own, the likeliest first: by what ties it to them, then the one that it
    /// had before, then the lowest.
    pub fn own<'l>(&self, leases: impl IntoIterator<Item = &'l Lease>) -> Vec<(LeaseMatch, &'l Lease)> {
        let is_other = |lease: &Lease| lease.attrs.node.is_some_and(|node| self.others.contains(&node));
        let tied = leases.into_iter().filter(|lease| !is_other(lease));
        let tied = tied.filter_map(|lease| Some((lease.match_host(&self.public, self.node)?, lease)));
        let mut own: Vec<_> = tied.collect();
        own.sort_by_key(|(tie, lease)| (*tie, Some(lease.subnet) != self.previous, lease.subnet));
        own
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
        step_of(None, &[], previous, leases, attempt)
    }

    fn step_of(
        node: Option<NodeId>,
        others: &[NodeId],
        previous: Option<&str>,
        leases: &[Lease],
        attempt: u32,
    ) -> Step {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let previous = previous.map(|text| text.parse().unwrap());
        let mut set = LeaseSet::default();
        set.apply(RegistryEvent::Snapshot(Snapshot {
            leases: leases.iter().cloned().map(Arc::new).collect(),
            ..Snapshot::default()
        }));
        let others = &others.iter().copied().collect();
        let claim = Claim { config: &config, public: ME.into(), node, others, previous, attempt };
        claim.next_step(&set, &mut |_| 0)
    }

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 16])
    }

    fn lease_of(subnet: &str, holder: Ipv4Addr, node: u8) -> Lease {
        let lease = lease(subnet, holder);
        Lease { attrs: lease.attrs.with_node(Some(id(node))), ..lease }
    }

    #[test]
    fn a_lease_with_the_own_id_is_used_again_whatever_its_address() {
        let leases = [lease("10.5.1.0-24", ME), lease_of("10.5.7.0-24", OTHER, 1)];
        let step = |previous| step_of(Some(id(1)), &[], previous, &leases, 0);
        assert_eq!(step(None), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step(Some("10.5.1.0-24")), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step_of(None, &[], None, &leases, 0), Step::Reuse(leases[0].clone().into()));
    }

    #[test]
    fn a_lease_of_another_id_under_the_own_address_is_used_unless_that_host_lives() {
        let leases = [lease_of("10.5.1.0-24", ME, 2)];
        assert_eq!(step_of(Some(id(1)), &[], None, &leases, 0), Step::Reuse(leases[0].clone().into()));
        let free = step(None, &[], 0);
        assert_eq!(step_of(Some(id(1)), &[id(2)], Some("10.5.1.0-24"), &leases, 0), free);
        let unfit = [lease_of("10.9.1.0-24", ME, 2)];
        assert_eq!(step_of(Some(id(1)), &[], None, &unfit, 0), free, "it is not this host's to remove");
        let known = [lease_of("10.5.1.0-24", ME, 2), lease("10.5.9.0-24", ME)];
        assert_eq!(step_of(Some(id(1)), &[], None, &known, 0), Step::Reuse(known[1].clone().into()));
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
