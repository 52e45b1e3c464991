//! Getting a lease: list, decide, write; again if the write found another state than the list.

use std::time::Duration;

use flannel_core::{
    Claim, Lease, LeaseAttrs, LeaseMatch, LeaseRequest, LeaseSet, ManagerError, NetworkConfig, RegistryError,
    RegistryEvent, Step, SubnetKey, SubnetRegistry, Term,
};

use super::{Holder, Known, Shared};

/// How many writes may find another state than the list before it is left to the caller to try again; flannel's own.
const ATTEMPTS: u32 = 10;

/// Stores count whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

impl<R: SubnetRegistry> Shared<R> {
    pub(super) async fn acquire(&self, request: LeaseRequest<'_>) -> Result<Lease, ManagerError> {
        let LeaseRequest { config, attrs, mut previous, .. } = request;
        let attrs = &attrs.clone().with_node(self.node());
        let others = self.state().others.clone();
        let (mut races_lost, mut tries) = (0, 1);
        loop {
            let leases = self.leases().await?;
            let (public, node, others) = (attrs.public, attrs.node, &others);
            let claim = Claim { config, public, node, others, previous, attempt: races_lost };
            let step = claim.next_step(&leases, &mut |n| self.state().random.usize(..n.max(1)));
            say(&step, &claim, attrs);
            if let Step::Reuse(lease) = &step {
                // Should it run out before it is written, it is the one to take back.
                previous = Some(lease.subnet);
            }
            let before = match &step {
                Step::Reuse(lease) => Some(Holder::of(&lease.attrs)),
                Step::Discard(_) | Step::TakeBack(_) | Step::Take(_) | Step::OutOfSubnets => None,
            };
            let error = match self.take(step, config, attrs).await {
                Ok(lease) => {
                    self.hold(&lease, before);
                    return Ok(lease);
                }
                Err(ManagerError::Registry(error)) => error,
                Err(error) => return Err(error),
            };
            races_lost += u32::from(matches!(error, RegistryError::Exists(_)));
            if tries == ATTEMPTS || !is_cured_by_listing(&error) {
                return Err(error.into());
            }
            tracing::debug!(%error, tries, "listing again");
            tries += 1;
        }
    }

    /// Returns all leases: as recalled, if that was just now, else from a new list.
    async fn leases(&self) -> Result<LeaseSet, ManagerError> {
        let recalled = self.state().known.take_if(|known| known.fresh);
        let snapshot = match recalled {
            Some(known) => known.snapshot,
            None => self.registry.list().await?,
        };
        let mut leases = LeaseSet::default();
        leases.apply(RegistryEvent::Snapshot(snapshot.clone()));
        self.state().known = Some(Known { snapshot, fresh: false });
        Ok(leases)
    }

    /// Takes one step. `Gone` after a lease was discarded means to list and ask again.
    async fn take(
        &self,
        step: Step,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
    ) -> Result<Lease, ManagerError> {
        match step {
            Step::Reuse(lease) => Ok(self.reuse(&lease, attrs).await?),
            Step::Discard(lease) => {
                self.registry.delete(&lease).await?;
                Err(RegistryError::Gone(lease.subnet).into())
            }
            Step::TakeBack(subnet) | Step::Take(subnet) => {
                let lease = self.registry.create(subnet, attrs, self.options.ttl).await?;
                self.granted(self.options.ttl);
                // The space at the end is flannel's.
                tracing::info!("Allocated lease ({}) to current node ({}) ", name(&subnet), attrs.public);
                Ok(lease)
            }
            Step::OutOfSubnets => {
                let ranges: Vec<String> = config.pools().map(|pool| pool.to_string()).collect();
                Err(ManagerError::OutOfSubnets(ranges.join(" and ")))
            }
        }
    }

    /// Takes over a lease of this host. One that says already what it should is only renewed: that tells the peers
    /// nothing, however many hosts start again at once. Where that makes it last for another time than it should, as
    /// after a change of the option, it is written again: in some stores only that gives it another one.
    async fn reuse(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, RegistryError> {
        let ttl = self.options.ttl;
        if lease.attrs != *attrs {
            let lease = self.registry.update(lease, attrs, ttl).await?;
            self.granted(ttl);
            return Ok(lease);
        }
        if lease.term == Term::Permanent {
            self.granted(ttl);
            return Ok(lease.clone());
        }
        let granted = self.registry.renew(lease, ttl).await?;
        self.granted(granted);
        if granted.abs_diff(ttl) <= ROUNDING {
            return Ok(lease.clone());
        }
        // What was granted stays noted: whoever gives less once may do so again.
        self.registry.update(lease, attrs, ttl).await
    }

    /// Notes that a lease is held now, and by whom it was before, and forgets what was heard of the one before.
    pub(super) fn hold(&self, lease: &Lease, before: Option<Holder>) {
        self.own.send_replace(None);
        let mut state = self.state();
        state.held = Some(lease.clone());
        // A holder without an id cannot be told from this host.
        state.taken_from =
            before.filter(|before| before.node.is_some() && *before != Holder::of(&lease.attrs));
    }
}

/// Tells whether the next list says what a write did, or why it did not.
fn is_cured_by_listing(error: &RegistryError) -> bool {
    use RegistryError::{Changed, Exists, Gone, Unknown};
    matches!(error, Exists(_) | Changed(_) | Gone(_) | Unknown(..))
}

/// Tells what is about to be done in the words that flannel's operators look for in the log.
fn say(step: &Step, claim: &Claim<'_>, attrs: &LeaseAttrs) {
    let ip = attrs.public;
    match step {
        Step::Reuse(lease) => {
            let (subnet, was) = (name(&lease.subnet), lease.attrs.public);
            match lease.tie(&ip, attrs.node) {
                Some(LeaseMatch::Id) if was != ip => tracing::info!(
                    "Found lease ({subnet}) of this host, whose IP was {was}, for current IP ({ip}), reusing"
                ),
                Some(LeaseMatch::AddressOfOtherId) => tracing::info!(
                    "Found lease ({subnet}) for current IP ({ip}), reusing, though it names another node id: this \
                     host lost its own, or another host has the same IP"
                ),
                _ => tracing::info!("Found lease ({subnet}) for current IP ({ip}), reusing"),
            }
        }
        Step::Discard(lease) => tracing::info!(
            "Found lease ({}) for current IP ({ip}) but not compatible with current config, deleting",
            name(&lease.subnet)
        ),
        Step::TakeBack(subnet) => {
            tracing::info!("Found previously leased subnet ({}), reusing", name(subnet));
        }
        Step::Take(_) => {
            if let Some(previous) = claim.previous.filter(|previous| !claim.config.offers(previous)) {
                tracing::warn!(
                    "Found previously leased subnet ({}) that is not compatible with the network config, ignoring",
                    name(&previous)
                );
            }
            for (pool, family) in [(claim.config.ipv4, ""), (claim.config.ipv6, "ipv6 ")] {
                if let Some(pool) = pool {
                    tracing::info!("Picking {family}subnet in range {pool}");
                }
            }
        }
        Step::OutOfSubnets => {}
    }
}

/// Writes a subnet as flannel's log does.
pub(super) fn name(subnet: &SubnetKey) -> String {
    let nets: Vec<String> = subnet.nets().map(|net| net.to_string()).collect();
    match (subnet.v4(), subnet.v6(), nets.as_slice()) {
        (Some(_), Some(_), [v4, v6]) => format!("ip: {v4} ipv6: {v6}"),
        (None, Some(_), [v6]) => format!("ipv6: {v6}"),
        _ => nets.join(" "),
    }
}
