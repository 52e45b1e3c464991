//! The netlink request socket that a backend's tables share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::{BackendError, BoxError};
use flannel_netlink::{Error, Namespace, Netlink, WriteRequest};

/// The number of writes that are encoded at once. A netlink message holds far fewer; the bound limits memory in a large
/// network.
pub(crate) const WRITE_BATCH: usize = 1024;

/// A netlink request socket that a backend's tables share.
#[derive(Clone, Debug)]
pub struct SharedNetlink(Arc<Mutex<Netlink>>);

impl SharedNetlink {
    /// Opens a socket in a namespace.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if the kernel refuses the socket.
    pub fn open_in(namespace: &Namespace) -> Result<Self, BackendError> {
        let netlink = Netlink::open_in(namespace).map_err(socket_error)?;
        Ok(Self(Arc::new(Mutex::new(netlink))))
    }

    /// Locks the socket. Requests block for as long as the kernel works.
    pub fn lock(&self) -> MutexGuard<'_, Netlink> {
        // A panic in another thread leaves the socket usable: each request has its own sequence number.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes objects and returns one result for each.
    pub fn write(&self, writes: &[WriteRequest]) -> Vec<Result<(), BoxError>> {
        self.lock().apply(writes).into_iter().map(|result| result.map_err(BoxError::from)).collect()
    }

    /// Writes changes that take one message each.
    pub(crate) fn write_changes<C>(
        &self,
        changes: &[C],
        encode: impl Fn(&C) -> WriteRequest,
    ) -> Vec<Result<(), BoxError>> {
        let mut results = Vec::with_capacity(changes.len());
        for batch in changes.chunks(WRITE_BATCH) {
            let writes: Vec<WriteRequest> = batch.iter().map(&encode).collect();
            results.extend(self.write(&writes));
        }
        results
    }
}

pub(crate) fn socket_error(error: Error) -> BackendError {
    BackendError::Kernel { object: "cannot open a netlink socket".to_owned(), source: error.into() }
}

/// Returns the error of a plan that could not read a table, such as `overlay routes`.
pub fn table_read_error(table: &str, source: BoxError) -> BackendError {
    BackendError::Kernel { object: format!("cannot read the {table}"), source }
}
