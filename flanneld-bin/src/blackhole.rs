//! A route by which packets to this host's own subnet end, if no other route knows their destination.
//!
//! Without it a packet to a container that is not there may leave by the default route, and come back.

use std::convert::Infallible;
use std::time::Duration;

use flannel_core::{Running, SubnetKey, chain};
use flannel_netlink::{Error, Namespace, Netlink, Route, Write};
use tokio::sync::watch;
use tracing::{error, info};

use crate::story;

/// The highest metric there is: every other route to the subnet, above all that of the bridge, comes first.
const METRIC: u32 = u32::MAX;

/// Keeps the routes for the subnets that the host has, for ever.
pub(crate) async fn keep(
    namespace: Namespace,
    every: Duration,
    mut network: watch::Receiver<Option<Running>>,
) -> Infallible {
    let mut subnet: Option<SubnetKey> = None;
    let mut told = None;
    loop {
        let wanted = network.borrow_and_update().as_ref().map(|running| running.lease.subnet);
        let failure = put(&namespace, subnet.filter(|before| Some(*before) != wanted), wanted).err();
        let failure = failure.map(|error| chain(&error));
        match (&failure, wanted) {
            (Some(reason), _) if failure != told => error!("Failed to add the blackhole route: {reason}"),
            (None, Some(now)) if subnet != wanted => info!("Blackhole route for {}", story::subnets(&now)),
            _ => {}
        }
        (subnet, told) = (wanted, failure);
        tokio::select! {
            Ok(()) = network.changed() => {}
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Removes the routes for the subnets of a network that ends.
pub(crate) fn remove(namespace: &Namespace, running: &Running) {
    if let Err(error) = put(namespace, Some(running.lease.subnet), None) {
        error!("The blackhole route stays: {}", chain(&error));
    }
}

/// Adds what is missing, and deletes the routes of an earlier subnet.
fn put(namespace: &Namespace, before: Option<SubnetKey>, now: Option<SubnetKey>) -> Result<(), Error> {
    let routes = |subnet: Option<SubnetKey>| {
        let nets: Vec<_> = subnet.iter().flat_map(SubnetKey::nets).collect();
        nets.into_iter().map(|net| Route::blackhole(net).with_metric(METRIC))
    };
    let writes: Vec<Write> =
        routes(before).map(WriteRequest::DeleteRoute).chain(routes(now).map(WriteRequest::AddRoute)).collect();
    if writes.is_empty() {
        return Ok(());
    }
    let outcomes = Netlink::open_in(namespace)?.apply(&writes);
    outcomes
        .into_iter()
        .find(|outcome| outcome.as_ref().is_err_and(|error| !error.is_exists() && !error.is_not_found()))
        .unwrap_or(Ok(()))
}
