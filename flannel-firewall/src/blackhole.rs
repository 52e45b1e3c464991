//! Blackhole routes for the host's own subnets.
//!
//! Without one, a packet to a container that does not exist may leave by the default route, and come back.

use std::convert::Infallible;
use std::time::Duration;

use flannel_core::chain;
use flannel_netlink::{Error, Namespace, Netlink, Route, RouteFilter, RouteKind, WriteRequest};
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{error, info};

use crate::options::FirewallNetwork;
use crate::rules::OverlayPrefixes;

/// The lowest priority: every other route to the subnet, above all the bridge's, comes first. It also marks the routes of
/// earlier runs.
const METRIC: u32 = u32::MAX;

/// The blackhole routes of one network on one host.
///
/// flannel owns the blackhole routes in the main table to prefixes of its network with the metric 4294967295.
#[derive(Debug)]
pub struct BlackholeRoutes {
    namespace: Namespace,
    audit_interval: Duration,
    is_enabled: bool,
    /// The networks that this host has and had. Routes into these are flannel's.
    networks: Vec<IpNet>,
    /// The subnets at the last pass; `None` before it.
    subnets: Option<Vec<IpNet>>,
    /// The last failure; it is logged once.
    failure: Option<String>,
}

impl BlackholeRoutes {
    /// Prepares to keep routes, and to check them this often.
    #[must_use]
    pub fn new(namespace: Namespace, audit_interval: Duration) -> Self {
        let (networks, subnets) = (Vec::new(), None);
        Self { namespace, audit_interval, is_enabled: true, networks, subnets, failure: None }
    }

    /// Sets whether to keep routes. Without, only those of earlier runs are removed.
    #[must_use]
    pub fn with_enabled(self, is_enabled: bool) -> Self {
        Self { is_enabled, ..self }
    }

    /// Names the prefixes of an earlier run on this host, whose routes are removed.
    #[must_use]
    pub fn with_previous(mut self, previous: &[OverlayPrefixes]) -> Self {
        self.networks.extend(previous.iter().map(OverlayPrefixes::network));
        self
    }

    /// Keeps a route for each subnet of the network that `networks` holds, and never returns.
    ///
    /// Failures are logged and retried.
    pub async fn run(mut self, mut networks: watch::Receiver<Option<FirewallNetwork>>) -> Infallible {
        loop {
            let network = networks.borrow_and_update().clone();
            if let Some(network) = network {
                self.reconcile(&network);
            }
            tokio::select! {
                Ok(()) = networks.changed() => {}
                () = tokio::time::sleep(self.audit_interval) => {}
            }
        }
    }

    fn reconcile(&mut self, network: &FirewallNetwork) {
        let desired = if self.is_enabled { subnets(network) } else { Vec::new() };
        for prefixes in &network.prefixes {
            if !self.networks.contains(&prefixes.network()) {
                self.networks.push(prefixes.network());
            }
        }
        let is_new = self.subnets.as_ref() != Some(&desired) || self.failure.is_some();
        let result = self.apply(&desired, is_new);
        let failure = result.err().map(|error| chain(&error));
        match &failure {
            Some(reason) if failure != self.failure => {
                error!("Failed to set up the blackhole route: {reason}; retrying");
            }
            None if is_new && !desired.is_empty() => {
                let names: Vec<_> = desired.iter().map(ToString::to_string).collect();
                info!("Blackhole route for {}", names.join(" and "));
            }
            _ => {}
        }
        (self.subnets, self.failure) = (Some(desired), failure);
    }

    /// Adds the desired routes. For a new desired state, it first removes stale ones.
    fn apply(&self, desired: &[IpNet], is_new: bool) -> Result<(), Error> {
        if desired.is_empty() && !is_new {
            return Ok(());
        }
        let mut netlink = Netlink::open_in(&self.namespace)?;
        let mut stale = if is_new { leftovers(&mut netlink, &self.networks)? } else { Vec::new() };
        stale.retain(|route| !desired.contains(&route.destination));
        write(&mut netlink, stale, desired)
    }

    /// Removes the routes for the subnets of a network.
    ///
    /// # Errors
    ///
    /// [`Error`] if the kernel refuses.
    pub fn remove(namespace: &Namespace, network: &FirewallNetwork) -> Result<(), Error> {
        let stale = subnets(network).into_iter().map(route).collect();
        write(&mut Netlink::open_in(namespace)?, stale, &[])
    }
}

fn subnets(network: &FirewallNetwork) -> Vec<IpNet> {
    network.prefixes.iter().map(OverlayPrefixes::subnet).collect()
}

fn route(subnet: IpNet) -> Route {
    Route::blackhole(subnet).with_metric(METRIC)
}

/// Reads flannel's routes into these networks.
fn leftovers(netlink: &mut Netlink, networks: &[IpNet]) -> Result<Vec<Route>, Error> {
    let filter = RouteFilter {
        table: Some(Route::MAIN_TABLE),
        kind: Some(RouteKind::Blackhole),
        ..RouteFilter::default()
    };
    let mut routes = netlink.routes(&filter)?;
    routes.retain(|route| {
        route.metric == Some(METRIC) && networks.iter().any(|network| network.contains(&route.destination))
    });
    Ok(routes.into_iter().map(|found| route(found.destination)).collect())
}

fn write(netlink: &mut Netlink, stale: Vec<Route>, desired: &[IpNet]) -> Result<(), Error> {
    let deletions = stale.into_iter().map(WriteRequest::DeleteRoute);
    let additions = desired.iter().map(|subnet| WriteRequest::AddRoute(route(*subnet)));
    netlink
        .apply(&deletions.chain(additions).collect::<Vec<_>>())
        .into_iter()
        .find(|result| result.as_ref().is_err_and(|error| !error.is_exists()))
        .unwrap_or(Ok(()))
}
