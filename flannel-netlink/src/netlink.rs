//! The handle for requests to rtnetlink.

use std::os::fd::BorrowedFd;

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::socket::NetlinkSocket;

/// A connection to the links, addresses, routes, neighbours and forwarding entries of one network
/// namespace (rtnetlink).
///
/// Calls block, but the kernel answers at once.
#[derive(Debug)]
pub struct Netlink {
    pub(crate) socket: NetlinkSocket,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// Those of [`NetlinkSocket::open`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_ROUTE)? })
    }

    /// Opens a socket in a namespace.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Returns the number by which notifications name this socket as the cause of a change.
    pub fn port_id(&self) -> u32 {
        self.socket.port_id()
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.descriptor()
    }
}
