//! Acquisition of a lease: list, choose, write; repeated if the write finds another state than the list.

use std::time::Duration;

use flannel_core::{
    Claim, Lease, LeaseAttrs, LeaseMatch, LeaseRequest, LeaseSet, ManagerError, NetworkConfig, RegistryError,
    RegistryEvent, Step, SubnetKey, SubnetRegistry, Term,
};

use super::shared::{LastList, LeaseOwner, Shared};

/// The number of attempts before the caller must try again, as in upstream flannel.
const ATTEMPTS: u32 = 10;

/// Stores round TTLs to whole seconds.
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
            log_step(&step, &claim, attrs);
            if let Step::Reuse(lease) = &step {
                // If it expires before the write, the next attempt takes the same subnet.
                previous = Some(lease.subnet);
            }
            let before = match &step {
                Step::Reuse(lease) => Some(LeaseOwner::of(&lease.attrs)),
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
            if tries == ATTEMPTS || !is_retryable(&error) {
                return Err(error.into());
            }
            tracing::debug!(%error, tries, "acquisition raced with another write; listing again");
            tries += 1;
        }
    }

    /// Returns all leases: from the list of `previous_lease` if it has not been used yet, else from a new list.
    async fn leases(&self) -> Result<LeaseSet, ManagerError> {
        let fresh = self.state().last_list.take_if(|list| list.fresh);
        let snapshot = match fresh {
            Some(list) => list.snapshot,
            None => self.registry.list().await?,
        };
        let mut leases = LeaseSet::default();
        leases.apply(RegistryEvent::Snapshot(snapshot.clone()));
        self.state().last_list = Some(LastList { snapshot, fresh: false });
        Ok(leases)
    }

    /// Takes one step. `Gone` after a lease was discarded makes the caller list again.
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
                self.set_granted(self.options.ttl);
                // The trailing space is upstream flannel's.
                tracing::info!("Allocated lease ({}) to current node ({}) ", name(&subnet), attrs.public);
                Ok(lease)
            }
            Step::OutOfSubnets => {
                let ranges: Vec<String> = config.pools().map(|pool| pool.to_string()).collect();
                Err(ManagerError::OutOfSubnets(ranges.join(" and ")))
            }
        }
    }

    /// Reuses a lease of this host. A lease with the right attributes is only renewed, which sends no events to the peers
    /// when many hosts restart at once. If the granted TTL differs from the wanted one, as after a change of the option,
    /// the record is written again, because some stores change the TTL only then.
    async fn reuse(&self, lease: &Lease, attrs: &LeaseAttrs) -> Result<Lease, RegistryError> {
        let ttl = self.options.ttl;
        if lease.attrs != *attrs {
            let lease = self.registry.update(lease, attrs, ttl).await?;
            self.set_granted(ttl);
            return Ok(lease);
        }
        if lease.term == Term::Permanent {
            self.set_granted(ttl);
            return Ok(lease.clone());
        }
        let granted = self.registry.renew(lease, ttl).await?;
        self.set_granted(granted);
        if granted.abs_diff(ttl) <= ROUNDING {
            return Ok(lease.clone());
        }
        // The granted TTL stays recorded: a store that grants less once may do so again.
        self.registry.update(lease, attrs, ttl).await
    }

    /// Records the held lease and its former owner, and discards the own record as the watch saw it before.
    pub(super) fn hold(&self, lease: &Lease, before: Option<LeaseOwner>) {
        self.own_record.send_replace(None);
        let mut state = self.state();
        state.held = Some(lease.clone());
        // An owner without an id may be this host.
        state.taken_from =
            before.filter(|before| before.node.is_some() && *before != LeaseOwner::of(&lease.attrs));
    }
}

/// Reports whether another list shows the outcome of a write, or why it failed.
fn is_retryable(error: &RegistryError) -> bool {
    use RegistryError::{Changed, Exists, Gone, Unknown};
    matches!(error, Exists(_) | Changed(_) | Gone(_) | Unknown(..))
}

/// Logs a step with upstream flannel's texts, which operators search for.
fn log_step(step: &Step, claim: &Claim<'_>, attrs: &LeaseAttrs) {
    let ip = attrs.public;
    match step {
        Step::Reuse(lease) => {
            let (subnet, was) = (name(&lease.subnet), lease.attrs.public);
            match lease.match_host(&ip, attrs.node) {
                Some(LeaseMatch::Id) if was != ip => tracing::info!(
                    "Found lease ({subnet}) of this host, whose IP was {was}, for current IP ({ip}), reusing"
                ),
                Some(LeaseMatch::AddressOfOtherId) => tracing::info!(
                    "Found lease ({subnet}) for current IP ({ip}), reusing, although it has another node id: this host \
                     lost its id file, or another host has the same IP"
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

/// Formats a subnet as upstream flannel's log does.
pub(super) fn name(subnet: &SubnetKey) -> String {
    let nets: Vec<String> = subnet.nets().map(|net| net.to_string()).collect();
    match (subnet.v4(), subnet.v6(), nets.as_slice()) {
        (Some(_), Some(_), [v4, v6]) => format!("ip: {v4} ipv6: {v6}"),
        (None, Some(_), [v6]) => format!("ipv6: {v6}"),
        _ => nets.join(" "),
    }
}
