//! A request socket: a request and its answer, and whole dumps.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP,
    NLMSG_OVERRUN,
};
use netlink_sys::{Socket, SocketAddr};

use crate::error::Error;
use crate::message::{Acknowledgement, EncodeRequest, Message, Messages, RawMessage};
use crate::namespace::Namespace;
use crate::sys;

/// The kernel answers before `send` returns, so a receive only times out if an answer was lost. Long
/// enough for a machine that is out of memory or paused.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The kernel fills dumps up to the size of the buffer it saw last, 32 KiB at most
/// (`netlink_dump` in `net/netlink/af_netlink.c`); each buffer restarts the walk over forwarding
/// entries. Twice that leaves room for one large link.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The attempts to read a dump without an interruption by a change.
const DUMP_ATTEMPTS: usize = 16;

/// A request socket of any netlink protocol in one network namespace.
///
/// [`Netlink`](crate::Netlink), [`Nftables`](crate::Nftables) and
/// [`GenericNetlink`](crate::GenericNetlink) are built on it. Use it for what they do not offer, such
/// as another kind of link.
///
/// Calls block, but the kernel answers at once. A socket belongs to the namespace it was opened in,
/// not to the thread that uses it. Dumps are checked strictly (`NETLINK_GET_STRICT_CHK`) and returned
/// whole: one that a change interrupted is repeated.
#[derive(Debug)]
pub struct NetlinkSocket {
    socket: Socket,
    port_id: u32,
    sequence: u32,
    received: Vec<u8>,
}

impl NetlinkSocket {
    /// Opens a socket in the namespace of the calling thread, for a protocol such as `NETLINK_ROUTE`
    /// (`linux/netlink.h`).
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel lacks the protocol, has no descriptor or memory left, or is
    /// older than 4.20.
    pub fn open(protocol: isize) -> Result<Self, Error> {
        let mut socket = Socket::new(protocol)?;
        let port_id = socket.bind_auto()?.port_number();
        // From now on only the kernel can send to this socket.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        socket.set_netlink_get_strict_chk(true)?;
        sys::set_receive_timeout(&socket, RECEIVE_TIMEOUT)?;
        Ok(Self { socket, port_id, sequence: 0, received: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Opens a socket in a namespace.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace, protocol: isize) -> Result<Self, Error> {
        namespace.run(|| Self::open(protocol))?
    }

    /// Returns the number by which notifications name this socket as the cause of a change.
    pub fn port_id(&self) -> u32 {
        self.port_id
    }

    /// Sends a request for a change and waits until the kernel has made it. `object` names the action
    /// for errors: `create link tunl0`. `flags` are added to `NLM_F_REQUEST` and `NLM_F_ACK`.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses, and those of the socket.
    pub fn execute(&mut self, object: impl Display, request: &RawMessage, flags: u16) -> Result<(), Error> {
        self.execute_request(object, request, flags)
    }

    /// Sends a request for one object and returns the answer.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute).
    pub fn query(&mut self, object: impl Display, request: &RawMessage) -> Result<RawMessage, Error> {
        self.query_with(object, request, |message| Ok(message.into()))
    }

    /// Sends a request for all objects of a kind and returns the answers.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute), and [`Error::Interrupted`] when the objects kept changing.
    pub fn dump(&mut self, objects: &'static str, request: &RawMessage) -> Result<Vec<RawMessage>, Error> {
        self.dump_with(objects, request, |message| Ok(Some(message.into())))
    }

    /// Sends a request for a change and waits until the kernel has made it.
    pub(crate) fn execute_request(
        &mut self,
        object: impl Display,
        request: &impl EncodeRequest,
        flags: u16,
    ) -> Result<(), Error> {
        let sequence = self.send(request, flags | NLM_F_ACK)?;
        self.answer(&object, sequence, |_| Ok(()))
    }

    /// Sends a request for one object and reads the answer.
    pub(crate) fn query_with<T>(
        &mut self,
        object: impl Display,
        request: &impl EncodeRequest,
        read: impl FnOnce(Message<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        let sequence = self.send(request, 0)?;
        self.answer(&object, sequence, read)
    }

    /// Sends a request for all objects of a kind and reads the answers; `read` returns `None` for
    /// objects to leave out.
    pub(crate) fn dump_with<T>(
        &mut self,
        objects: &'static str,
        request: &impl EncodeRequest,
        read: impl Fn(Message<'_>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(request, NLM_F_DUMP)?;
            let mut dump = Dump::new(objects, sequence, &read);
            while !dump.done {
                if let Err(error) = self.receive(0) {
                    self.drain();
                    return Err(lost_or_failed(&objects, error));
                }
                dump.take(&self.received);
            }
            match dump.finish()? {
                Some(found) => return Ok(found),
                None => tracing::debug!(objects, "a change interrupted the dump; reading again"),
            }
        }
        Err(Error::Interrupted(objects))
    }

    /// Reserves sequence numbers for `count` requests; returns the first.
    pub(crate) fn reserve_sequence(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends encoded requests.
    pub(crate) fn send_bytes(&self, requests: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(requests, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one datagram.
    pub(crate) fn receive(&mut self, flags: i32) -> io::Result<&[u8]> {
        receive(&self.socket, &mut self.received, flags)?;
        Ok(&self.received)
    }

    /// Discards pending datagrams, so that the socket can be used again after a failure in the middle
    /// of an answer.
    fn drain(&mut self) {
        while let Ok(()) = receive(&self.socket, &mut self.received, libc::MSG_DONTWAIT) {}
    }

    pub(crate) fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.socket)
    }

    fn send(&mut self, request: &impl EncodeRequest, flags: u16) -> Result<u32, Error> {
        let sequence = self.reserve_sequence(1);
        let mut bytes = Vec::with_capacity(256);
        request.append(&mut bytes, flags | NLM_F_REQUEST, sequence);
        self.send_bytes(&bytes)?;
        Ok(sequence)
    }

    /// Waits for the answer to a request: the object, an error, or an acknowledgement.
    fn answer<T>(
        &mut self,
        object: &impl Display,
        sequence: u32,
        read: impl FnOnce(Message<'_>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        loop {
            let datagram = self.receive(0).map_err(|error| lost_or_failed(object, error))?;
            for message in Messages::new(datagram) {
                let message = message.map_err(|reason| Error::malformed(object, &reason))?;
                if message.sequence != sequence {
                    tracing::trace!(sequence = message.sequence, "ignoring the answer to an earlier request");
                    continue;
                }
                if message.kind == NLMSG_ERROR {
                    let acknowledgement = Acknowledgement::of_error(message)
                        .map_err(|reason| Error::malformed(object, &reason))?;
                    acknowledgement.into_result(object)?;
                }
                return read(message).map_err(|reason| Error::malformed(object, &reason));
            }
        }
    }
}

/// A dump while it is received.
struct Dump<F, T> {
    objects: &'static str,
    sequence: u32,
    read: F,
    found: Vec<T>,
    interrupted: bool,
    failure: Option<Error>,
    done: bool,
}

impl<T, F: Fn(Message<'_>) -> Result<Option<T>, DecodeError>> Dump<F, T> {
    fn new(objects: &'static str, sequence: u32, read: F) -> Self {
        Self { objects, sequence, read, found: Vec::new(), interrupted: false, failure: None, done: false }
    }

    /// Processes one datagram. Reading continues after a failure, because the socket allows no other
    /// dump before this one ends.
    fn take(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            if let Err(error) = message
                .map_err(|reason| Error::malformed(self.objects, &reason))
                .and_then(|message| self.take_message(message))
            {
                self.failure.get_or_insert(error);
            }
        }
    }

    fn take_message(&mut self, message: Message<'_>) -> Result<(), Error> {
        if message.sequence != self.sequence {
            return Ok(());
        }
        self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
        let malformed = |reason: DecodeError| Error::malformed(self.objects, &reason);
        match message.kind {
            NLMSG_NOOP | NLMSG_OVERRUN => Ok(()),
            NLMSG_DONE => {
                self.done = true;
                Acknowledgement::of_done(message)
                    .map_err(malformed)?
                    .into_result(format_args!("read {}", self.objects))
            }
            NLMSG_ERROR => {
                self.done = true;
                Acknowledgement::of_error(message)
                    .map_err(malformed)?
                    .into_result(format_args!("read {}", self.objects))
            }
            _ => {
                self.found.extend((self.read)(message).map_err(malformed)?);
                Ok(())
            }
        }
    }

    /// Returns the objects; `None` if they changed while they were read.
    fn finish(self) -> Result<Option<Vec<T>>, Error> {
        match self.failure {
            Some(error) => Err(error),
            None if self.interrupted => Ok(None),
            None => Ok(Some(self.found)),
        }
    }
}

/// Receives one datagram into `buffer`, up to its capacity.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>, flags: i32) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, flags | libc::MSG_TRUNC) {
            Ok(len) if len > buffer.len() => {
                // The datagram is cut. The next one will fit.
                buffer.reserve(len.next_power_of_two());
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Returns no objects for a dump that is restricted to a link, table or chain that does not exist;
/// the kernel calls that an error.
pub(crate) fn none_if_gone<T>(result: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        other => other,
    }
}

/// Distinguishes a lost answer (`ENOBUFS`, or a timeout) from a broken socket.
fn lost_or_failed(object: &impl Display, error: io::Error) -> Error {
    if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) {
        Error::Unanswered { object: object.to_string() }
    } else {
        Error::Socket(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::received;

    const SEQUENCE: u32 = 7;
    const OBJECT: u16 = 24;

    fn object(flags: u16, number: u8) -> Vec<u8> {
        received(OBJECT, flags, SEQUENCE, &[number])
    }

    fn done(flags: u16, errno: i32) -> Vec<u8> {
        received(NLMSG_DONE, flags, SEQUENCE, &(-errno).to_ne_bytes())
    }

    /// Reads a dump from datagrams; objects with number 0 cannot be read.
    fn dump(datagrams: &[Vec<u8>]) -> (bool, Result<Option<Vec<u8>>, Error>) {
        let mut dump = Dump::new("routes", SEQUENCE, |message: Message<'_>| match message.payload {
            [0, ..] | [] => Err(DecodeError::from("number 0")),
            [number, ..] => Ok(Some(*number)),
        });
        for datagram in datagrams {
            dump.take(datagram);
        }
        (dump.done, dump.finish())
    }

    #[test]
    fn a_dump_ends_with_the_done_message() {
        let mut first = object(0, 1);
        first.extend(object(0, 2));
        let (complete, _) = dump(&[first.clone()]);
        assert!(!complete);
        let (complete, found) = dump(&[first, object(0, 3), done(0, 0)]);
        assert!(complete);
        assert_eq!(found.unwrap(), Some(vec![1, 2, 3]));
    }

    #[test]
    fn an_interrupted_dump_returns_nothing() {
        let (_, found) = dump(&[object(0, 1), object(NLM_F_DUMP_INTR, 2), done(0, 0)]);
        assert_eq!(found.unwrap(), None);
        let (_, found) = dump(&[object(0, 1), done(NLM_F_DUMP_INTR, 0)]);
        assert_eq!(found.unwrap(), None);
    }

    #[test]
    fn messages_of_an_earlier_dump_are_ignored() {
        let stale = received(OBJECT, NLM_F_DUMP_INTR, SEQUENCE - 1, &[9]);
        let stale_end = received(NLMSG_DONE, 0, SEQUENCE - 1, &[0; 4]);
        let (complete, found) = dump(&[stale, stale_end, object(0, 1), done(0, 0)]);
        assert!(complete);
        assert_eq!(found.unwrap(), Some(vec![1]));
    }

    #[test]
    fn an_unreadable_object_fails_the_dump_after_its_end() {
        let (complete, found) = dump(&[object(0, 0), object(0, 2), done(0, 0)]);
        assert!(complete);
        let error = found.unwrap_err();
        assert_eq!(error.to_string(), "the answer to routes cannot be read: number 0");
    }

    #[test]
    fn a_dump_that_the_kernel_aborts_is_an_error() {
        let (complete, found) = dump(&[object(0, 1), done(0, libc::ENOMEM)]);
        assert!(complete);
        assert_eq!(found.unwrap_err().errno(), Some(libc::ENOMEM));
    }
}
