//! Batches of writes.
//!
//! 1. Requests are encoded back to back into one buffer, with increasing sequence numbers.
//! 2. One `send` passes them to the kernel, which executes all of them before it returns, also those
//!    after a failure (`netlink_rcv_skb` in `net/netlink/af_netlink.c`).
//! 3. The kernel answers each failure with its sequence number. Only the last request demands an
//!    acknowledgement, which marks the end of the answers.
//! 4. If the kernel reports that answers were lost, every request without an answer counts as
//!    unanswered.

use std::fmt;
use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR,
};
use netlink_packet_route::RouteNetlinkMessage;

use crate::address::Address;
use crate::error::{Error, is_gone};
use crate::fdb::FdbEntry;
use crate::message::{Acknowledgement, EncodeRequest, Message, Messages};
use crate::neighbour::Neighbour;
use crate::netlink::Netlink;
use crate::request_writer::append;
use crate::route::Route;
use crate::rtm::{RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWNEIGH, RTM_NEWROUTE};

/// Requests per `send`. A receive buffer of the default size (212,992 bytes) holds the answers to 256
/// failing requests; half of that leaves room for long explanations. More than 64 requests gain nothing
/// measurable, and 128 stay far below the limit of one `send`, 190 KB.
const BATCH: usize = 128;

/// The largest request is about 100 bytes.
const REQUEST_LEN: usize = 104;

/// A request to write one object.
///
/// *Put* creates or replaces the object (`NLM_F_CREATE` and `NLM_F_REPLACE`), *delete* removes it. Both
/// succeed if the object is already in that state.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum WriteRequest {
    /// Puts a route; it replaces the one with the same destination, metric and table.
    ///
    /// IPv6 refuses an on-link gateway that another route reaches over another link, even if that route
    /// is to be replaced (`ip6_route_check_nh_onlink` in `net/ipv6/route.c`): delete that route first, in
    /// the same batch.
    PutRoute(Route),
    /// Adds a route. Fails if there is one with the same destination, metric and table, on any link;
    /// [`Error::is_exists`] is then true.
    AddRoute(Route),
    /// Deletes a route.
    DeleteRoute(Route),
    /// Puts a neighbour; it replaces the one with the same address.
    PutNeighbour(Neighbour),
    /// Deletes a neighbour.
    DeleteNeighbour(Neighbour),
    /// Puts a forwarding entry; it replaces the one with the same MAC address.
    PutFdb(FdbEntry),
    /// Deletes a forwarding entry. An entry with another destination stays.
    DeleteFdb(FdbEntry),
    /// Puts an address.
    PutAddress(Address),
    /// Deletes an address. With a link's last IPv4 address, the kernel deletes its IPv4 routes.
    DeleteAddress(Address),
}

/// The operation of a write.
#[derive(Clone, Copy)]
enum Operation {
    Put,
    Add,
    Delete,
}

impl WriteRequest {
    fn operation(&self) -> Operation {
        match self {
            Self::PutRoute(_) | Self::PutNeighbour(_) | Self::PutFdb(_) | Self::PutAddress(_) => {
                Operation::Put
            }
            Self::AddRoute(_) => Operation::Add,
            Self::DeleteRoute(_) | Self::DeleteNeighbour(_) | Self::DeleteFdb(_) | Self::DeleteAddress(_) => {
                Operation::Delete
            }
        }
    }

    fn flags(&self) -> u16 {
        NLM_F_REQUEST
            | match self.operation() {
                Operation::Put => NLM_F_CREATE | NLM_F_REPLACE,
                Operation::Add => NLM_F_CREATE | NLM_F_EXCL,
                Operation::Delete => 0,
            }
    }

    /// Translates the kernel's answer.
    fn outcome(&self, acknowledgement: Acknowledgement) -> Result<(), Error> {
        let already = match self.operation() {
            Operation::Put => acknowledgement.errno == libc::EEXIST,
            Operation::Add => false,
            Operation::Delete => is_gone(acknowledgement.errno),
        };
        if already { Ok(()) } else { acknowledgement.into_result(self) }
    }
}

impl EncodeRequest for WriteRequest {
    fn append(&self, buffer: &mut Vec<u8>, flags: u16, sequence: u32) {
        match self {
            Self::PutRoute(route) | Self::AddRoute(route) => {
                append(buffer, RTM_NEWROUTE, flags, sequence, |request| route.write(request));
            }
            Self::DeleteRoute(route) => {
                append(buffer, RTM_DELROUTE, flags, sequence, |request| route.write(request));
            }
            Self::PutNeighbour(neighbour) => {
                append(buffer, RTM_NEWNEIGH, flags, sequence, |request| neighbour.write(request));
            }
            Self::DeleteNeighbour(neighbour) => {
                append(buffer, RTM_DELNEIGH, flags, sequence, |request| neighbour.write(request));
            }
            Self::PutFdb(entry) => {
                append(buffer, RTM_NEWNEIGH, flags, sequence, |request| entry.write(request));
            }
            Self::DeleteFdb(entry) => {
                append(buffer, RTM_DELNEIGH, flags, sequence, |request| entry.write(request));
            }
            Self::PutAddress(address) => {
                RouteNetlinkMessage::NewAddress(address.message()).append(buffer, flags, sequence);
            }
            Self::DeleteAddress(address) => {
                RouteNetlinkMessage::DelAddress(address.message()).append(buffer, flags, sequence);
            }
        }
    }
}

impl fmt::Display for WriteRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.operation() {
            Operation::Put => "put ",
            Operation::Add => "add ",
            Operation::Delete => "delete ",
        })?;
        match self {
            Self::PutRoute(route) | Self::AddRoute(route) | Self::DeleteRoute(route) => route.fmt(f),
            Self::PutNeighbour(neighbour) | Self::DeleteNeighbour(neighbour) => neighbour.fmt(f),
            Self::PutFdb(entry) | Self::DeleteFdb(entry) => entry.fmt(f),
            Self::PutAddress(address) | Self::DeleteAddress(address) => address.fmt(f),
        }
    }
}

impl Netlink {
    /// Executes all writes in order and returns the result of each, in the same order. Execution
    /// continues after a failure.
    ///
    /// A write with [`Error::Unanswered`] may or may not have been executed; read the objects again.
    pub fn apply(&mut self, writes: &[WriteRequest]) -> Vec<Result<(), Error>> {
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut requests = Vec::with_capacity(BATCH.min(writes.len()) * REQUEST_LEN);
        for batch in writes.chunks(BATCH) {
            requests.clear();
            self.apply_batch(batch, &mut requests, &mut outcomes);
        }
        outcomes
    }

    fn apply_batch(
        &mut self,
        batch: &[WriteRequest],
        requests: &mut Vec<u8>,
        outcomes: &mut Vec<Result<(), Error>>,
    ) {
        // `batch` has at most BATCH elements, so its length and every position fit.
        let first = self.socket.reserve_sequence(batch.len() as u32);
        let last = batch.len() - 1;
        for (position, write) in batch.iter().enumerate() {
            let ask = if position == last { NLM_F_ACK } else { 0 };
            write.append(requests, write.flags() | ask, first.wrapping_add(position as u32));
        }
        if let Err(error) = self.socket.send_bytes(requests) {
            outcomes.extend(batch.iter().map(|_| Err(not_sent(&error))));
            return;
        }
        let mut answers = Answers::new(batch, first);
        if let Err(error) = self.take_answers(&mut answers, 0) {
            tracing::debug!(%error, writes = batch.len(), "answers to a batch of writes were lost");
            answers.lost = true;
            // The kernel reports a loss before it delivers the answers that it still holds.
            let _ = self.take_answers(&mut answers, libc::MSG_DONTWAIT);
        }
        outcomes.extend(answers.into_outcomes());
    }

    /// Receives up to the acknowledgement of the last request.
    fn take_answers(&mut self, answers: &mut Answers<'_>, flags: i32) -> io::Result<()> {
        while !answers.complete {
            answers.take(self.socket.receive(flags)?);
        }
        Ok(())
    }
}

/// The answers to a batch received so far.
struct Answers<'a> {
    batch: &'a [WriteRequest],
    /// The sequence number of the first request.
    first: u32,
    /// The answers, with the positions of their requests; most requests get none.
    answers: Vec<(usize, Result<(), Error>)>,
    /// Whether the last request was acknowledged, so that no more answers follow.
    complete: bool,
    /// Whether answers may have been lost.
    lost: bool,
}

impl<'a> Answers<'a> {
    fn new(batch: &'a [WriteRequest], first: u32) -> Self {
        Self { batch, first, answers: Vec::new(), complete: false, lost: false }
    }

    fn take(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            if let Err(reason) = message.and_then(|message| self.take_message(message)) {
                tracing::debug!(%reason, "cannot read an answer to a batch of writes");
                self.lost = true;
            }
        }
    }

    fn take_message(&mut self, message: Message<'_>) -> Result<(), DecodeError> {
        let position = message.sequence.wrapping_sub(self.first) as usize;
        let Some(write) = self.batch.get(position) else {
            tracing::trace!(sequence = message.sequence, "ignoring the answer to an earlier request");
            return Ok(());
        };
        if message.kind == NLMSG_ERROR {
            self.complete |= position == self.batch.len() - 1;
            self.answers.push((position, write.outcome(Acknowledgement::of_error(message)?)));
        }
        Ok(())
    }

    /// Returns the results. A request without an answer succeeded, unless answers were lost.
    fn into_outcomes(mut self) -> impl Iterator<Item = Result<(), Error>> {
        self.answers.sort_by_key(|(position, _)| *position);
        let (lost, mut answers) = (self.lost, self.answers.into_iter().peekable());
        self.batch.iter().enumerate().map(move |(position, write)| {
            match answers.next_if(|(about, _)| *about == position) {
                Some((_, outcome)) => outcome,
                None if lost => Err(Error::Unanswered { object: write.to_string() }),
                None => Ok(()),
            }
        })
    }
}

/// Returns the error of a batch that `send` refused: the kernel executed none of it.
fn not_sent(error: &io::Error) -> Error {
    Error::Socket(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error))
}

#[cfg(test)]
#[allow(clippy::wildcard_enum_match_arm, reason = "any other error fails the test")]
mod tests {
    use super::*;
    use crate::namespace::Namespace;
    use crate::sys;

    #[test]
    fn a_write_with_a_lost_answer_is_reported_as_unanswered() {
        let namespace = Namespace::create().expect("this test creates a network namespace: run it as root");
        let mut netlink = Netlink::open_in(&namespace).unwrap();
        // There is no link 999, so every write fails and is answered.
        let writes: Vec<_> = (0..=250)
            .map(|number| {
                let address = std::net::Ipv4Addr::new(10, 0, 0, number).into();
                WriteRequest::PutNeighbour(Neighbour::permanent(
                    999,
                    address,
                    crate::Mac([2, 0, 0, 0, 0, number]),
                ))
            })
            .collect();
        // Room for a few answers only.
        sys::force_receive_buffer(netlink.descriptor(), 4096).unwrap();
        let outcomes = netlink.apply(&writes);
        assert_eq!(outcomes.len(), writes.len());
        let mut lost = 0;
        for (outcome, write) in outcomes.iter().zip(&writes) {
            match outcome.as_ref().unwrap_err() {
                Error::Unanswered { object } => {
                    assert_eq!(*object, write.to_string());
                    lost += 1;
                }
                error => {
                    assert!(error.is_not_found(), "{error:?}");
                    assert!(error.to_string().contains(&write.to_string()), "{error}");
                }
            }
        }
        assert!(lost > 0 && lost < writes.len(), "{lost} lost");
        sys::force_receive_buffer(netlink.descriptor(), 1 << 20).unwrap();
        assert!(
            netlink.apply(&writes).iter().all(|outcome| outcome.as_ref().is_err_and(Error::is_not_found))
        );
    }
}
