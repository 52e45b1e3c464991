//! Blackhole routes for the host's own subnets.
//!
//! Without one, a packet to a container that does not exist may leave by the default route, and come back.

use std::convert::Infallible;
use std::time::Duration;

use flannel_core::chain;
use flannel_netlink::{Error, Namespace, Netlink, Route, WriteRequest};
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{error, info};

use crate::options::FirewallNetwork;

/// The lowest priority: every other route to the subnet, above all the bridge's, comes first.
const METRIC: u32 = u32::MAX;

/// The blackhole routes of one network on one host.
#[derive(Debug)]
pub struct BlackholeRoutes {
    namespace: Namespace,
    audit_interval: Duration,
    subnets: Vec<IpNet>,
    /// The last failure; it is logged once.
    failure: Option<String>,
}

impl BlackholeRoutes {
    /// Prepares to keep routes, and to check them this often.
    #[must_use]
    pub fn new(namespace: Namespace, audit_interval: Duration) -> Self {
        Self { namespace, audit_interval, subnets: Vec::new(), failure: None }
    }

    /// Keeps a route for each subnet of the network that `networks` holds, and never returns.
    ///
    /// Failures are logged and retried.
    pub async fn run(mut self, mut networks: watch::Receiver<Option<FirewallNetwork>>) -> Infallible {
        loop {
            let subnets = networks.borrow_and_update().as_ref().map(subnets).unwrap_or_default();
            self.reconcile(subnets);
            tokio::select! {
                Ok(()) = networks.changed() => {}
                () = tokio::time::sleep(self.audit_interval) => {}
            }
        }
    }

    fn reconcile(&mut self, subnets: Vec<IpNet>) {
        let stale: Vec<_> = self.subnets.iter().filter(|net| !subnets.contains(net)).copied().collect();
        let failure = apply(&self.namespace, &stale, &subnets).err().map(|error| chain(&error));
        match &failure {
            Some(reason) if failure != self.failure => error!("Failed to add the blackhole route: {reason}"),
            None if subnets != self.subnets => {
                let names: Vec<_> = subnets.iter().map(ToString::to_string).collect();
                info!("Blackhole route for {}", names.join(" and "));
            }
            _ => {}
        }
        (self.subnets, self.failure) = (subnets, failure);
    }

    /// Removes the routes for the subnets of a network.
    ///
    /// # Errors
    ///
    /// [`Error`] if the kernel refuses.
    pub fn remove(namespace: &Namespace, network: &FirewallNetwork) -> Result<(), Error> {
        apply(namespace, &subnets(network), &[])
    }
}

fn subnets(network: &FirewallNetwork) -> Vec<IpNet> {
    network.prefixes.iter().map(|prefixes| prefixes.subnet()).collect()
}

/// Removes the stale routes and adds the desired ones.
fn apply(namespace: &Namespace, stale: &[IpNet], desired: &[IpNet]) -> Result<(), Error> {
    let route = |net: &IpNet| Route::blackhole(*net).with_metric(METRIC);
    let deletions = stale.iter().map(route).map(WriteRequest::DeleteRoute);
    let writes: Vec<WriteRequest> =
        deletions.chain(desired.iter().map(route).map(WriteRequest::AddRoute)).collect();
    if writes.is_empty() {
        return Ok(());
    }
    Netlink::open_in(namespace)?
        .apply(&writes)
        .into_iter()
        .find(|result| result.as_ref().is_err_and(|error| !error.is_exists() && !error.is_not_found()))
        .unwrap_or(Ok(()))
}
