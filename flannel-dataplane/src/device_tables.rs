//! The neighbour table and the FDB of a tunnel device, each as a [`Table`]. Permanent entries belong to the backend.

use std::net::IpAddr;

use flannel_core::BoxError;
use flannel_core::reconcile::{Change, Table};
use flannel_netlink::{FdbEntry, IpFamily, Mac, Neighbour, WriteRequest};

use crate::netlink::SharedNetlink;

/// The device and family of a table's objects.
#[derive(Clone, Debug)]
pub struct DeviceScope {
    /// The socket for requests.
    pub netlink: SharedNetlink,
    /// The index of the device, which changes when the device is replaced.
    pub index: u32,
    /// The address family.
    pub family: IpFamily,
}

/// The permanent neighbours of a tunnel device: from a peer's overlay address to the MAC address of its device.
#[derive(Debug)]
pub struct NeighbourTable {
    /// The device.
    pub scope: DeviceScope,
}

impl Table for NeighbourTable {
    type Key = IpAddr;
    type Value = Mac;

    fn name(address: &IpAddr, mac: &Mac) -> String {
        format!("neighbour {address} lladdr {mac}")
    }

    fn read(&mut self) -> Result<Vec<(IpAddr, Mac)>, BoxError> {
        let DeviceScope { netlink, index, family } = &self.scope;
        let neighbours = netlink.lock().neighbours(*index, Some(*family))?;
        let permanent = neighbours.into_iter().filter(Neighbour::is_permanent);
        Ok(permanent.filter_map(|neighbour| Some((neighbour.address, neighbour.mac?))).collect())
    }

    fn apply(&mut self, changes: &[Change<IpAddr, Mac>]) -> Vec<Result<(), BoxError>> {
        let neighbour = |address: IpAddr, mac: Mac| Neighbour::permanent(self.scope.index, address, mac);
        self.scope.netlink.write_changes(changes, |change| match change {
            Change::Put { key, value, .. } => WriteRequest::PutNeighbour(neighbour(*key, *value)),
            Change::Drop { key, value } => WriteRequest::DeleteNeighbour(neighbour(*key, *value)),
        })
    }
}

/// The permanent FDB entries of a tunnel device: from the MAC address of a peer's device to the peer's endpoint.
#[derive(Debug)]
pub struct FdbTable {
    /// The device.
    pub scope: DeviceScope,
}

impl Table for FdbTable {
    type Key = Mac;
    type Value = IpAddr;

    fn name(mac: &Mac, destination: &IpAddr) -> String {
        format!("FDB entry {mac} dst {destination}")
    }

    fn read(&mut self) -> Result<Vec<(Mac, IpAddr)>, BoxError> {
        let entries = self.scope.netlink.lock().fdb(self.scope.index)?;
        let permanent = entries.into_iter().filter(|entry| entry.is_permanent() && entry.bridge.is_none());
        Ok(permanent.filter_map(|entry| Some((entry.mac, entry.destination?))).collect())
    }

    fn apply(&mut self, changes: &[Change<Mac, IpAddr>]) -> Vec<Result<(), BoxError>> {
        let entry = |mac: Mac, destination: IpAddr| FdbEntry::permanent(self.scope.index, mac, destination);
        self.scope.netlink.write_changes(changes, |change| match change {
            Change::Put { key, value, .. } => WriteRequest::PutFdb(entry(*key, *value)),
            Change::Drop { key, value } => WriteRequest::DeleteFdb(entry(*key, *value)),
        })
    }
}

#[cfg(test)]
mod tests;
