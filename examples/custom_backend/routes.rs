//! The backend's routes as a kernel table.

use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{Netlink, Route, RouteFilter, WriteRequest};
use ipnet::IpNet;

/// The protocol number that marks the routes of this backend, across restarts.
pub(crate) const OURS: u8 = 99;

/// The routes to peers; the value is the next hop.
pub(crate) struct Routes(pub(crate) Netlink);

impl Table for Routes {
    type Key = IpNet;
    type Value = IpAddr;

    fn name(subnet: &IpNet, _: &IpAddr) -> String {
        format!("route {subnet}")
    }

    fn read(&mut self) -> Result<Vec<(IpNet, IpAddr)>, BoxError> {
        let ours = RouteFilter { protocol: Some(OURS), ..RouteFilter::default() };
        Ok(self
            .0
            .routes(&ours)?
            .iter()
            .filter_map(|route| Some((route.destination, route.gateway?)))
            .collect())
    }

    fn apply(&mut self, changes: &[Change<IpNet, IpAddr>]) -> Vec<Result<(), BoxError>> {
        let route =
            |subnet: &IpNet, host: &IpAddr| Route { protocol: OURS, ..Route::by_gateway(*subnet, *host) };
        let writes = changes.iter().map(|change| match change {
            Change::Put { key, value, .. } => WriteRequest::PutRoute(route(key, value)),
            Change::Drop { key, value } => WriteRequest::DeleteRoute(route(key, value)),
        });
        let results = self.0.apply(&writes.collect::<Vec<_>>());
        results.into_iter().map(|result| result.map_err(BoxError::from)).collect()
    }
}
