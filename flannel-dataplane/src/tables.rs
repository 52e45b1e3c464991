//! Two kernel tables of a tunnel device, each as a [`Table`]: its neighbours and forwarding entries, of which the
//! permanent ones are ours.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::reconcile::{Change, Table};
use flannel_core::{BackendError, BoxError};
use flannel_netlink::{Error, FdbEntry, IpFamily, Mac, Namespace, Neighbour, Netlink, WriteRequest};

/// The request socket that a backend's tables share.
#[derive(Clone, Debug)]
pub struct Kernel(Arc<Mutex<Netlink>>);

impl Kernel {
    pub fn open_in(namespace: &Namespace) -> Result<Self, BackendError> {
        Ok(Self(Arc::new(Mutex::new(Netlink::open_in(namespace).map_err(no_socket)?))))
    }

    pub fn lock(&self) -> MutexGuard<'_, Netlink> {
        // A panic elsewhere leaves the socket usable: every request has its own number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn apply(&self, writes: &[WriteRequest]) -> Vec<Result<(), BoxError>> {
        self.lock().apply(writes).into_iter().map(|result| result.map_err(boxed)).collect()
    }

    /// Carries out changes that take one write each. The writes of a large network are made in parts, so that they
    /// never all stand in memory.
    fn apply_changes<C>(
        &self,
        changes: &[C],
        write: impl Fn(&C) -> WriteRequest,
    ) -> Vec<Result<(), BoxError>> {
        let mut results = Vec::with_capacity(changes.len());
        for part in changes.chunks(WRITES_AT_ONCE) {
            let writes: Vec<WriteRequest> = part.iter().map(&write).collect();
            results.extend(self.apply(&writes));
        }
        results
    }
}

pub fn no_socket(error: Error) -> BackendError {
    BackendError::Kernel { object: "cannot open a netlink socket".to_owned(), source: error.into() }
}

/// A plan that failed, in the words of a pass.
pub fn unreadable(what: &str, error: BoxError) -> BackendError {
    BackendError::Kernel { object: format!("cannot read {what}"), source: error }
}

/// Far more than go to the kernel in one message.
pub const WRITES_AT_ONCE: usize = 1024;

pub fn boxed(error: Error) -> BoxError {
    Box::new(error)
}

/// On which device a table's objects are.
#[derive(Clone, Debug)]
pub struct Place {
    pub kernel: Kernel,
    pub index: u32,
    pub family: IpFamily,
}

/// Permanent neighbours: which device address stands for a peer's overlay address.
#[derive(Debug)]
pub struct Neighbours(pub Place);

impl Table for Neighbours {
    type Key = IpAddr;
    type Value = Mac;

    fn name(address: &IpAddr, mac: &Mac) -> String {
        format!("neighbour {address} lladdr {mac}")
    }

    fn read(&mut self) -> Result<Vec<(IpAddr, Mac)>, BoxError> {
        let read = self.0.kernel.lock().neighbours(self.0.index, Some(self.0.family)).map_err(boxed)?;
        let ours = read.into_iter().filter(Neighbour::is_permanent);
        Ok(ours.filter_map(|neighbour| Some((neighbour.address, neighbour.mac?))).collect())
    }

    fn apply(&mut self, changes: &[Change<IpAddr, Mac>]) -> Vec<Result<(), BoxError>> {
        let neighbour = |address: IpAddr, mac: Mac| Neighbour::permanent(self.0.index, address, mac);
        self.0.kernel.apply_changes(changes, |change| match change {
            Change::Put { key, value, .. } => WriteRequest::PutNeighbour(neighbour(*key, *value)),
            Change::Drop { key, value } => WriteRequest::DeleteNeighbour(neighbour(*key, *value)),
        })
    }
}

/// Permanent forwarding entries: where the tunnel to a peer's device ends.
#[derive(Debug)]
pub struct Fdb(pub Place);

impl Table for Fdb {
    type Key = Mac;
    type Value = IpAddr;

    fn name(mac: &Mac, destination: &IpAddr) -> String {
        format!("forwarding entry {mac} dst {destination}")
    }

    fn read(&mut self) -> Result<Vec<(Mac, IpAddr)>, BoxError> {
        let read = self.0.kernel.lock().fdb(self.0.index).map_err(boxed)?;
        let ours = read.into_iter().filter(|entry| entry.is_permanent() && entry.bridge.is_none());
        Ok(ours.filter_map(|entry| Some((entry.mac, entry.destination?))).collect())
    }

    fn apply(&mut self, changes: &[Change<Mac, IpAddr>]) -> Vec<Result<(), BoxError>> {
        let entry = |mac: Mac, destination: IpAddr| FdbEntry::permanent(self.0.index, mac, destination);
        self.0.kernel.apply_changes(changes, |change| match change {
            Change::Put { key, value, .. } => WriteRequest::PutFdb(entry(*key, *value)),
            Change::Drop { key, value } => WriteRequest::DeleteFdb(entry(*key, *value)),
        })
    }
}

#[cfg(test)]
mod tests;
