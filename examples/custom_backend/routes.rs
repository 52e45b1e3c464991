//! The routes of the backend, as a table of the kernel: how they are read and written, and nothing else.

use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{Netlink, Route, RouteFilter, Write};
use ipnet::IpNet;

/// By this number in the kernel the routes of this backend are known, also to its next run.
pub(crate) const OURS: u8 = 99;

/// The routes to peers; the value is the host that each leads to.
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
            Change::Put { key, value, .. } => Write::PutRoute(route(key, value)),
            Change::Drop { key, value } => Write::DeleteRoute(route(key, value)),
        });
        let results = self.0.apply(&writes.collect::<Vec<_>>());
        results.into_iter().map(|result| result.map_err(BoxError::from)).collect()
    }
}
