//! The backend of the configuration, and during a migration a second one, so that the hosts of a network change from one
//! to the other one by one and reach each other meanwhile.
//!
//! A migration is possible between a tunnel, which has a route for each peer, and a fallback, which has one route for the
//! whole network (see [`MigrationRole`]). With `vxlan` and `udp`:
//!
//! | lease of this host | lease of a peer | path of the packets |
//! |---|---|---|
//! | `vxlan` | `vxlan` | the tunnel, by the peer's route |
//! | `vxlan` | `udp` | UDP in both directions, by the network's route |
//! | `udp` | `udp`, or `vxlan` of a host that also opened UDP | UDP in both directions |
//!
//! A host with a tunnel lease opens the fallback while some peer's lease is of the fallback, and [`LINGER`] longer. A host
//! that goes back to the fallback sends through its tunnel for [`HANDOVER`], until its peers have opened the fallback,
//! and receives from it for [`LINGER`].

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendConfig, BackendError, DeviceFacts, Dirty, ExternalInterface, Json, Lease,
    MigrationRole, NetworkConfig, OpenRequest, PeerSet, SubnetKey, SyncReport, SyncRequest, TrafficCounters,
    chain,
};
use tracing::{info, warn};

use super::BackendRegistry;

/// How long packets of late peers are received after the last peer migrated. A registry notifies all hosts within a
/// second, or when it is available again.
const LINGER: Duration = Duration::from_secs(60);

/// How long a host that goes back to the fallback sends through its tunnel.
const HANDOVER: Duration = Duration::from_secs(3);

/// The pause before another attempt to open the fallback.
const RETRY: Duration = Duration::from_secs(30);

/// The backends of one network on one host.
pub(super) struct MigratingBackend {
    registry: BackendRegistry,
    primary: Box<dyn Backend>,
    secondary: Option<SecondaryBackend>,
    config: NetworkConfig,
    external: ExternalInterface,
    state_dir: Option<PathBuf>,
    own: Option<Lease>,
    /// The last configuration of the fallback, whose port is in no lease.
    fallback: Option<BackendConfig>,
    /// The peers with leases of the fallback, while the primary backend is a tunnel.
    fallback_peers: BTreeSet<SubnetKey>,
    /// The time and the reason of the last failure to open the fallback.
    failure: Option<(Instant, String)>,
}

/// A backend beside the one of the configuration.
struct SecondaryBackend {
    name: String,
    backend: Box<dyn Backend>,
    /// The time since which nothing needs it.
    idle_since: Option<Instant>,
    /// Whether it reaches no peer and only receives.
    is_receive_only: bool,
}

impl MigratingBackend {
    pub(super) fn open(registry: BackendRegistry, request: OpenRequest<'_>) -> Result<Self, BackendError> {
        let primary = registry.open_one(request)?;
        let options = Json::parse("{}").map_err(|error| BackendError::Host(error.to_string()))?;
        let fallback = registry.fallback().map(|fallback| BackendConfig::new(fallback.name(), options));
        let mut backend = Self {
            registry,
            primary,
            secondary: None,
            config: request.config.clone(),
            external: request.external.clone(),
            state_dir: request.state_dir.map(Into::into),
            own: None,
            fallback,
            fallback_peers: BTreeSet::new(),
            failure: None,
        };
        backend.set_config(request);
        Ok(backend)
    }

    fn role(&self) -> Option<MigrationRole> {
        self.role_of(&self.config)
    }

    fn role_of(&self, config: &NetworkConfig) -> Option<MigrationRole> {
        self.registry.find(&config.backend.name)?.migration_role()
    }

    fn set_config(&mut self, request: OpenRequest<'_>) {
        self.config = request.config.clone();
        self.external = request.external.clone();
        if self.role() == Some(MigrationRole::Fallback) {
            self.fallback = Some(request.config.backend.clone());
        }
    }

    /// Replaces the primary backend, and keeps the old one as the secondary if the two can migrate.
    fn replace_primary(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        let roles = (self.role(), self.role_of(request.config));
        let can_migrate = matches!(
            roles,
            (Some(MigrationRole::Fallback), Some(MigrationRole::Tunnel))
                | (Some(MigrationRole::Tunnel), Some(MigrationRole::Fallback))
        );
        if !can_migrate {
            let next = self.registry.open_one(request)?;
            self.remove_secondary();
            let mut previous = std::mem::replace(&mut self.primary, next);
            if let Err(error) = previous.remove() {
                warn!("Failed to remove objects of backend {}: {}", self.config.backend.name, chain(&error));
            }
            return Ok(());
        }
        let next = match self.secondary.take() {
            None => self.registry.open_one(request)?,
            Some(mut secondary) => match secondary.backend.reconfigure(request) {
                Ok(()) => secondary.backend,
                Err(error) => {
                    self.secondary = Some(secondary);
                    return Err(error);
                }
            },
        };
        let backend = std::mem::replace(&mut self.primary, next);
        let name = self.config.backend.name.clone();
        self.secondary = Some(SecondaryBackend { name, backend, idle_since: None, is_receive_only: false });
        Ok(())
    }

    /// Removes the secondary backend. Objects that cannot be removed are logged.
    fn remove_secondary(&mut self) {
        if let Some(mut secondary) = self.secondary.take()
            && let Err(error) = secondary.backend.remove()
        {
            warn!("Failed to remove objects of backend {}: {}", secondary.name, chain(&error));
        }
    }

    /// Updates the peers that use the fallback. Costs what changed.
    fn update_fallback_peers(&mut self, peers: &PeerSet, dirty: &Dirty) {
        let Some(fallback) = self.registry.fallback() else { return };
        match dirty {
            Dirty::All => {
                let all = peers.iter().filter(|lease| fallback.has_lease(lease)).map(|lease| lease.subnet);
                self.fallback_peers = all.collect();
            }
            Dirty::Some(subnets) => {
                for subnet in subnets {
                    match peers.peer(subnet).is_some_and(|lease| fallback.has_lease(lease)) {
                        true => self.fallback_peers.insert(*subnet),
                        false => self.fallback_peers.remove(subnet),
                    };
                }
            }
        }
    }

    /// Opens the fallback beside the tunnel if peers use it, unless it failed a moment ago.
    fn open_fallback(&mut self, now: Instant) {
        let waits = self.failure.as_ref().is_some_and(|(at, _)| now.saturating_duration_since(*at) < RETRY);
        let is_wanted = self.secondary.is_none() && !self.fallback_peers.is_empty();
        let Some(own) = self.own.clone().filter(|_| is_wanted && !waits) else { return };
        let Some(fallback) = self.fallback.clone() else { return };
        let (name, tunnel) = (fallback.name.clone(), &self.config.backend.name);
        let mut config = self.config.clone();
        config.backend = fallback;
        let request = OpenRequest::new(&config, &self.external).with_state_dir(self.state_dir.as_deref());
        let opened = self.registry.open_one(request);
        match opened.and_then(|mut backend| backend.configure(&own).map(|()| backend)) {
            Ok(backend) => {
                let peers = self.fallback_peers.len();
                info!("Opened backend {name} in addition to {tunnel}: {peers} peers use it");
                self.failure = None;
                self.secondary =
                    Some(SecondaryBackend { name, backend, idle_since: None, is_receive_only: false });
            }
            Err(error) => {
                let reason = chain(&error);
                if self.failure.as_ref().is_none_or(|(_, logged)| *logged != reason) {
                    warn!("Failed to open backend {name} in addition to {tunnel}: {reason}; retrying");
                }
                self.failure = Some((now, reason));
            }
        }
    }

    /// Syncs the secondary backend, and removes it when its time is over.
    fn sync_secondary(&mut self, request: SyncRequest<'_>, report: &mut SyncReport) {
        let is_tunnel = self.role() == Some(MigrationRole::Tunnel);
        let Some(secondary) = self.secondary.as_mut() else { return };
        let is_needed = is_tunnel && !(self.fallback_peers.is_empty() && request.peers.is_complete());
        let next = SecondaryState::next(is_needed, is_tunnel, secondary.idle_since, request.now);
        secondary.idle_since = next.idle_since;
        report.retry_in = [report.retry_in, next.check_in].into_iter().flatten().min();
        if next.is_over {
            info!("Closing backend {}: all peers use {}", secondary.name, self.config.backend.name);
            self.remove_secondary();
            return;
        }
        let mut done = match next.is_receive_only {
            false => secondary.backend.sync(request),
            true => {
                let (no_peers, mut request) = (PeerSet::all_of(Vec::<Lease>::new()), request);
                request.peers = &no_peers;
                if !secondary.is_receive_only {
                    request.dirty = &Dirty::All;
                }
                secondary.backend.sync(request)
            }
        };
        secondary.is_receive_only = next.is_receive_only;
        if is_tunnel {
            let fallback_peers = &self.fallback_peers;
            report.unreachable.retain(|failure| !fallback_peers.contains(&failure.peer));
            done.unreachable.retain(|failure| fallback_peers.contains(&failure.peer));
            done.pending.retain(|failure| fallback_peers.contains(&failure.peer));
        } else {
            // The primary backend reaches the peers that this one doesn't.
            (done.unreachable, done.pending) = (Vec::new(), Vec::new());
        }
        report.merge(done);
    }
}

/// What becomes of the secondary backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SecondaryState {
    idle_since: Option<Instant>,
    is_receive_only: bool,
    is_over: bool,
    /// The time after which to decide again.
    check_in: Option<Duration>,
}

impl SecondaryState {
    /// Decides for a backend that has not been needed since `idle_since`. `is_fallback` is whether it is the fallback
    /// beside a tunnel.
    fn next(is_needed: bool, is_fallback: bool, idle_since: Option<Instant>, now: Instant) -> Self {
        if is_needed {
            return Self { idle_since: None, is_receive_only: false, is_over: false, check_in: None };
        }
        let since = idle_since.unwrap_or(now);
        let idle = now.saturating_duration_since(since);
        let is_receive_only = !is_fallback && idle >= HANDOVER;
        let next = if is_fallback || is_receive_only { LINGER } else { HANDOVER };
        Self {
            idle_since: Some(since),
            is_receive_only,
            is_over: idle >= LINGER,
            check_in: next.checked_sub(idle),
        }
    }
}

#[async_trait]
impl Backend for MigratingBackend {
    fn attrs(&self) -> BackendAttrs {
        self.primary.attrs()
    }

    /// Returns what fits both paths while packets may take either.
    fn mtu(&self) -> u32 {
        let secondary = self.secondary.as_ref().filter(|_| self.role() == Some(MigrationRole::Tunnel));
        secondary.map_or(u32::MAX, |secondary| secondary.backend.mtu()).min(self.primary.mtu())
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.primary.update_interface(external)?;
        self.external = external.clone();
        if self
            .secondary
            .as_mut()
            .is_some_and(|secondary| secondary.backend.update_interface(external).is_err())
        {
            // The next sync opens it again if it is needed.
            self.remove_secondary();
        }
        Ok(())
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        if request.config.backend.name.eq_ignore_ascii_case(&self.config.backend.name) {
            self.primary.reconfigure(request)?;
            // The next sync opens it for the new configuration if it is needed.
            self.remove_secondary();
        } else {
            self.replace_primary(request)?;
        }
        self.set_config(request);
        Ok(())
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.own = Some(own.clone());
        if let Some(secondary) = &mut self.secondary
            && let Err(error) = secondary.backend.configure(own)
        {
            warn!("Failed to configure backend {}: {}", secondary.name, chain(&error));
        }
        self.primary.configure(own)
    }

    fn sync(&mut self, mut request: SyncRequest<'_>) -> SyncReport {
        self.registry.publish(request.peers, request.dirty);
        let mut report = self.primary.sync(request);
        let had_secondary = self.secondary.is_some();
        if self.role() == Some(MigrationRole::Tunnel) {
            self.update_fallback_peers(request.peers, request.dirty);
            self.open_fallback(request.now);
            if self.failure.is_some() && !self.fallback_peers.is_empty() {
                report.retry_in = Some(report.retry_in.map_or(RETRY, |pause| pause.min(RETRY)));
            }
        }
        // A backend that was just opened knows no peers.
        if !had_secondary {
            request.dirty = &Dirty::All;
        }
        self.sync_secondary(request, &mut report);
        report
    }

    async fn wait_for_drift(&mut self) -> String {
        match &mut self.secondary {
            None => self.primary.wait_for_drift().await,
            Some(secondary) => tokio::select! {
                reason = self.primary.wait_for_drift() => reason,
                reason = secondary.backend.wait_for_drift() => reason,
            },
        }
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        let secondary = self.secondary.iter().flat_map(|secondary| secondary.backend.devices());
        self.primary.devices().into_iter().chain(secondary).collect()
    }

    fn traffic(&self) -> Option<Arc<dyn TrafficCounters>> {
        self.primary.traffic().or_else(|| self.secondary.as_ref()?.backend.traffic())
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let secondary = self.secondary.take().map_or(Ok(()), |mut secondary| secondary.backend.remove());
        self.primary.remove().and(secondary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fallback_stays_while_it_is_needed_and_a_minute_longer() {
        let start = Instant::now();
        let next = |is_needed, since, now| SecondaryState::next(is_needed, true, since, now);
        let needed = next(true, Some(start), start + LINGER * 2);
        let expected =
            SecondaryState { idle_since: None, is_receive_only: false, is_over: false, check_in: None };
        assert_eq!(needed, expected);
        let first = next(false, None, start);
        assert_eq!((first.idle_since, first.is_receive_only, first.is_over), (Some(start), false, false));
        assert_eq!(first.check_in, Some(LINGER));
        let later = next(false, first.idle_since, start + LINGER / 2);
        assert_eq!((later.is_receive_only, later.is_over, later.check_in), (false, false, Some(LINGER / 2)));
        assert!(next(false, first.idle_since, start + LINGER).is_over);
    }

    #[test]
    fn a_tunnel_that_is_left_sends_for_a_moment_and_receives_for_a_minute() {
        let start = Instant::now();
        let next = |since, now| SecondaryState::next(false, false, since, now);
        let first = next(None, start);
        assert_eq!((first.is_receive_only, first.check_in), (false, Some(HANDOVER)));
        let then = next(first.idle_since, start + HANDOVER);
        assert_eq!(
            (then.is_receive_only, then.is_over, then.check_in),
            (true, false, Some(LINGER - HANDOVER))
        );
        assert!(next(first.idle_since, start + LINGER).is_over);
    }
}
