//! A socket that the kernel's notices arrive at, whatever they are about.

use std::io;
use std::sync::Arc;

use netlink_sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use crate::error::Error;
use crate::socket::receive;
use crate::sys::{self, FilterInstruction};

/// The socket's receive buffer in bytes. The kernel charges about 800 bytes for a notice and
/// doubles the number given, so this holds about 20,000 notices: the default (256 notices)
/// overruns when one peer set is programmed. Memory is used only while notices wait.
const RECEIVE_BUFFER: i32 = 8 * 1024 * 1024;

/// Room for one datagram; a notice about a link with all its attributes has some 2 KiB.
const DATAGRAM: usize = 32 * 1024;

/// After an overrun at most this many stale notices are dropped at once, so that a flood cannot
/// keep the listener here; more than the receive buffer holds.
const STALE_MAX: usize = 100_000;

/// A socket that joined groups of notices.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Registered with a runtime on the first wait; before that, the listener needs none.
    ready: Option<AsyncFd<Arc<Socket>>>,
    socket: Arc<Socket>,
    received: Vec<u8>,
}

/// What there was to receive.
#[derive(Debug)]
pub(crate) enum Received<'a> {
    /// Notices.
    Datagram(&'a [u8]),
    /// No notice has arrived.
    Nothing,
    /// Notices were lost; those that were still held are dropped.
    Overrun,
}

impl Listener {
    /// Starts to listen to groups of a netlink family in the namespace of the calling thread.
    pub(crate) fn open(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        if sys::force_receive_buffer(&socket, RECEIVE_BUFFER).is_err() {
            // Without CAP_NET_ADMIN the kernel gives as much as `net.core.rmem_max` allows.
            socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        // From now on the kernel lets nobody but itself send to this socket.
        socket.connect(&SocketAddr::new(0, 0))?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self { ready: None, socket: Arc::new(socket), received: Vec::with_capacity(DATAGRAM) })
    }

    /// Lets the kernel drop what a program for its packet filter machine returns 0 for.
    pub(crate) fn filter(&self, program: &[FilterInstruction]) -> Result<(), Error> {
        Ok(sys::attach_filter(&*self.socket, program)?)
    }

    /// Waits until there may be something to receive. To be called after a receive that found nothing.
    pub(crate) async fn readable(&mut self) -> Result<(), Error> {
        let ready = match &mut self.ready {
            Some(ready) => ready,
            none => none.insert(sys::readable(Arc::clone(&self.socket))?),
        };
        // Whatever arrives after the empty read of the caller sets readiness again.
        ready.readable().await?.clear_ready();
        Ok(())
    }

    /// Takes the next datagram, if one has arrived.
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

    /// The kernel says once that notices were lost, before it hands out those it still holds.
    /// Who reads everything again has no use for them.
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
