//! A socket that receives the kernel's notifications of any netlink protocol.

use std::io;
use std::sync::Arc;

use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::message::{Messages, RawMessage};
use crate::namespace::Namespace;
use crate::socket::receive;
use crate::sys::{self, FilterInstruction};

/// The socket's receive buffer in bytes. The kernel charges about 800 bytes for a notification and
/// doubles the number given, so this holds about 20,000 notifications: the default (256) overruns
/// when one peer set is programmed. Memory is used only while notifications wait.
const RECEIVE_BUFFER: i32 = 8 * 1024 * 1024;

/// Room for one datagram; a notification about a link with all its attributes takes some 2 KiB.
const DATAGRAM: usize = 32 * 1024;

/// The most stale notifications dropped at once after an overrun, so that a flood cannot keep the
/// listener busy; more than the receive buffer holds.
const STALE_MAX: usize = 100_000;

/// A socket that joined multicast groups of a netlink protocol.
///
/// [`Monitor`](crate::Monitor) and [`NftMonitor`](crate::NftMonitor) are built on it. Use it for other
/// groups, such as those of a [`GenericFamily`](crate::GenericFamily).
#[derive(Debug)]
pub struct NetlinkListener {
    /// Registered with a runtime on the first wait; before that, the listener needs none.
    ready: Option<AsyncFd<Arc<Socket>>>,
    socket: Arc<Socket>,
    received: Vec<u8>,
}

/// What a [`NetlinkListener`] received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenerEvent {
    /// Notifications.
    Messages(Vec<RawMessage>),
    /// Notifications were lost because they came faster than they were received: read everything
    /// again.
    Overrun,
}

/// The result of one receive.
#[derive(Debug)]
pub(crate) enum Received<'a> {
    /// Notifications.
    Datagram(&'a [u8]),
    /// No notification has arrived.
    Nothing,
    /// Notifications were lost; those that the socket still held are dropped.
    Overrun,
}

impl NetlinkListener {
    /// Joins groups of a netlink protocol in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel lacks the protocol or group, or has no descriptor or memory
    /// left.
    pub fn open(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        if sys::force_receive_buffer(&socket, RECEIVE_BUFFER).is_err() {
            // Without CAP_NET_ADMIN the kernel allows as much as `net.core.rmem_max`.
            socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        // From now on only the kernel can send to this socket.
        socket.connect(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { ready: None, socket: Arc::new(socket), received: Vec::with_capacity(DATAGRAM) })
    }

    /// Joins groups of a netlink protocol in a namespace.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace, protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        namespace.run(|| Self::open(protocol, groups))?
    }

    /// Waits for notifications. Cancel safe.
    ///
    /// The first call ties the listener to the current tokio runtime, which must have its IO driver
    /// enabled.
    ///
    /// # Errors
    /// [`Error::Socket`] when the socket is broken: open a new listener and read everything again.
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without an IO driver.
    pub async fn next(&mut self) -> Result<ListenerEvent, Error> {
        loop {
            match self.receive()? {
                Received::Datagram(datagram) => {
                    let messages = Messages::new(datagram).flatten().map(RawMessage::from).collect();
                    return Ok(ListenerEvent::Messages(messages));
                }
                Received::Overrun => return Ok(ListenerEvent::Overrun),
                Received::Nothing => {}
            }
            self.readable().await?;
        }
    }

    /// Attaches a classic BPF program; the kernel drops notifications for which it returns 0.
    pub(crate) fn filter(&self, program: &[FilterInstruction]) -> Result<(), Error> {
        Ok(sys::attach_filter(&*self.socket, program)?)
    }

    /// Waits until there may be something to receive. Call it after a receive that found nothing.
    pub(crate) async fn readable(&mut self) -> Result<(), Error> {
        let ready = match &mut self.ready {
            Some(ready) => ready,
            none => none.insert(sys::readable(Arc::clone(&self.socket))?),
        };
        // A datagram that arrives after the caller's empty receive sets readiness again.
        ready.readable().await?.clear_ready();
        Ok(())
    }

    /// Receives the next datagram, if one has arrived.
    pub(crate) fn receive(&mut self) -> Result<Received<'_>, Error> {
        match receive(&self.socket, &mut self.received, 0) {
            Ok(()) => Ok(Received::Datagram(&self.received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Received::Nothing),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.drop_stale();
                Ok(Received::Overrun)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Drops what the socket still holds. The kernel reports a loss before it delivers those, and a
    /// full read covers them.
    fn drop_stale(&mut self) {
        for _ in 0..STALE_MAX {
            match receive(&self.socket, &mut self.received, 0) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}
