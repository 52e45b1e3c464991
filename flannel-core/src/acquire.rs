//! The decision which lease a host acquires. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::allocate::choose;
use crate::config::NetworkConfig;
use crate::lease::{Lease, LeaseMatch, NodeId, PublicAddrs};
use crate::lease_set::LeaseSet;
use crate::subnet::SubnetKey;

/// The inputs of a host that requests a lease.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The network configuration.
    pub config: &'a NetworkConfig,
    /// The host's public addresses.
    pub public: PublicAddrs,
    /// The host's ID, if it has one.
    pub node: Option<NodeId>,
    /// The IDs of other live hosts with the same address, whose leases don't belong to this host.
    pub others: &'a BTreeSet<NodeId>,
    /// The subnet that the host held before, if it is known.
    pub previous: Option<SubnetKey>,
    /// The number of earlier attempts that lost a race against another host.
    pub attempt: u32,
}

/// The next step towards a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The host already holds this lease: update its attributes.
    Reuse(Arc<Lease>),
    /// The host holds this lease, but the configuration no longer offers it: delete it, then decide again.
    Discard(Arc<Lease>),
    /// The subnet is free and the host held it before: create the lease.
    TakeBack(SubnetKey),
    /// The subnet is free: create the lease.
    Take(SubnetKey),
    /// Every subnet is taken.
    OutOfSubnets,
}

impl Claim<'_> {
    /// Decides the next step from all leases.
    ///
    /// The host's own lease comes first (see [`own`](Self::own)), then the previous subnet if it is free, then the one derived
    /// from the address, then any free one (see [`choose`]). `pick` returns a number below its argument.
    pub fn next_step(&self, leases: &LeaseSet, pick: &mut dyn FnMut(usize) -> usize) -> Step {
        let own = self.own(leases.leases().map(|lease| &**lease));
        if let Some((_, lease)) = own.iter().find(|(_, lease)| self.fits(&lease.subnet)) {
            return Step::Reuse(Arc::new((*lease).clone()));
        }
        // A lease that may belong to another host expires on its own.
        if let Some((_, lease)) = own.first().filter(|(matched, _)| *matched != LeaseMatch::AddressOfOtherId)
        {
            return Step::Discard(Arc::new((*lease).clone()));
        }
        let taken: Vec<SubnetKey> = leases.taken().collect();
        let is_free = |subnet: &SubnetKey| !taken.iter().any(|other| other.overlaps(subnet));
        // After a lost race another host has the previous subnet.
        if let Some(previous) =
            self.previous.filter(|subnet| self.attempt == 0 && self.fits(subnet) && is_free(subnet))
        {
            return Step::TakeBack(previous);
        }
        // The same applies to the subnet derived from the address.
        let place = Some(self.public).filter(|_| self.attempt == 0);
        choose(self.config, &taken, place, pick).map_or(Step::OutOfSubnets, Step::Take)
    }

    /// Returns the leases that may belong to the host: the strongest match first, then the previous subnet, then the lowest.
    pub fn own<'l>(&self, leases: impl IntoIterator<Item = &'l Lease>) -> Vec<(LeaseMatch, &'l Lease)> {
        let is_other = |lease: &Lease| lease.attrs.node.is_some_and(|node| self.others.contains(&node));
        let matching = leases.into_iter().filter(|lease| !is_other(lease));
        let matching = matching.filter_map(|lease| Some((lease.match_host(&self.public, self.node)?, lease)));
        let mut own: Vec<_> = matching.collect();
        own.sort_by_key(|(matched, lease)| (*matched, Some(lease.subnet) != self.previous, lease.subnet));
        own
    }

    fn fits(&self, subnet: &SubnetKey) -> bool {
        self.config.offers(subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{LeaseAttrs, Revision, Term};
    use crate::registry::{RegistryEvent, Snapshot};
    use std::net::Ipv4Addr;

    const ME: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 2);

    fn lease(subnet: &str, owner: Ipv4Addr) -> Lease {
        Lease {
            subnet: subnet.parse().unwrap(),
            attrs: LeaseAttrs::new(owner.into()),
            revision: Revision(1),
            term: Term::Limited,
        }
    }

    /// Decides, and picks the first free subnet.
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

    fn lease_of(subnet: &str, owner: Ipv4Addr, node: u8) -> Lease {
        let lease = lease(subnet, owner);
        Lease { attrs: lease.attrs.with_node(Some(id(node))), ..lease }
    }

    #[test]
    fn a_lease_with_the_own_id_is_reused_whatever_its_address() {
        let leases = [lease("10.5.1.0-24", ME), lease_of("10.5.7.0-24", OTHER, 1)];
        let step = |previous| step_of(Some(id(1)), &[], previous, &leases, 0);
        assert_eq!(step(None), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step(Some("10.5.1.0-24")), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step_of(None, &[], None, &leases, 0), Step::Reuse(leases[0].clone().into()));
    }

    #[test]
    fn a_lease_with_the_own_address_and_another_id_is_reused_unless_that_host_is_alive() {
        let leases = [lease_of("10.5.1.0-24", ME, 2)];
        assert_eq!(step_of(Some(id(1)), &[], None, &leases, 0), Step::Reuse(leases[0].clone().into()));
        let free = step(None, &[], 0);
        assert_eq!(step_of(Some(id(1)), &[id(2)], Some("10.5.1.0-24"), &leases, 0), free);
        let unfit = [lease_of("10.9.1.0-24", ME, 2)];
        assert_eq!(step_of(Some(id(1)), &[], None, &unfit, 0), free, "another host may own it");
        let known = [lease_of("10.5.1.0-24", ME, 2), lease("10.5.9.0-24", ME)];
        assert_eq!(step_of(Some(id(1)), &[], None, &known, 0), Step::Reuse(known[1].clone().into()));
    }

    #[test]
    fn a_lease_with_the_own_address_is_reused() {
        let leases = [lease("10.5.1.0-24", OTHER), lease("10.5.7.0-24", ME)];
        assert_eq!(step(None, &leases, 0), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step(Some("10.5.9.0-24"), &leases, 0), Step::Reuse(leases[1].clone().into()));
    }

    #[test]
    fn of_two_own_leases_the_previous_or_else_the_lowest_is_reused() {
        let leases = [lease("10.5.3.0-24", ME), lease("10.5.7.0-24", ME)];
        assert_eq!(step(Some("10.5.7.0-24"), &leases, 0), Step::Reuse(leases[1].clone().into()));
        assert_eq!(step(None, &leases, 0), Step::Reuse(leases[0].clone().into()));
    }

    #[test]
    fn an_own_lease_outside_the_config_is_discarded() {
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
    fn the_subnet_derived_from_the_address_is_tried_once_if_it_is_free() {
        let first_free = || Step::Take("10.5.1.0-24".parse().unwrap());
        let Step::Take(place) = step(None, &[], 0) else { panic!("a subnet is free") };
        assert_ne!(Step::Take(place), first_free());
        assert_eq!(step(None, &[lease(&place.to_string(), OTHER)], 0), first_free());
        assert_eq!(step(None, &[], 1), first_free());
    }

    #[test]
    fn a_full_network_is_out_of_subnets() {
        let leases = [lease("10.5.0.0-16", OTHER)];
        assert_eq!(step(None, &leases, 0), Step::OutOfSubnets);
    }
}
