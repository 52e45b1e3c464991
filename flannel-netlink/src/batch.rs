//! Many writes at once.
//!
//! 1. Requests are written back to back into one buffer, numbered in order.
//! 2. One `send` hands them to the kernel, which executes all of them before it returns, also
//!    those after one that fails (`netlink_rcv_skb` in `net/netlink/af_netlink.c`).
//! 3. Each failure answers with its number. Only the last request asks to be answered in any
//!    case: that answer says that there are no more.
//! 4. If the kernel says that answers were lost, every request without one of its own counts as
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

/// Requests per `send`. A receive buffer of the default size (212,992 bytes) holds the answers
/// to 256 requests that all fail; half of that leaves room for long explanations. More than 64
/// gains nothing measurable, and 128 requests are far below the 190 KB that one `send` takes.
const BATCH: usize = 128;

/// The largest request is about 100 bytes.
const REQUEST_LEN: usize = 104;

/// A change of one object.
///
/// *Put* makes the object be as given, whether or not it is there (`NLM_F_CREATE` and
/// `NLM_F_REPLACE`); *delete* makes it not be. An object that is that way already is no error.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum WriteRequest {
    /// Puts a route, in the place of the one with the same destination, metric and table.
    ///
    /// IPv6 refuses an on-link gateway that another route leads to by another link, even if
    /// that is the route to be replaced (`ip6_route_check_nh_onlink` in `net/ipv6/route.c`):
    /// delete that one first, in the same batch.
    PutRoute(Route),
    /// Adds a route where there is none with the same destination, metric and table; another one
    /// there, on whatever link, is an error for which [`Error::is_exists`] holds.
    AddRoute(Route),
    /// Deletes a route.
    DeleteRoute(Route),
    /// Puts a neighbour, in the place of the one with the same address.
    PutNeighbour(Neighbour),
    /// Deletes a neighbour.
    DeleteNeighbour(Neighbour),
    /// Puts a forwarding entry, in the place of the one with the same MAC address.
    PutFdb(FdbEntry),
    /// Deletes a forwarding entry. One with another destination stays.
    DeleteFdb(FdbEntry),
    /// Puts an address.
    PutAddress(Address),
    /// Deletes an address. With a link's last IPv4 address go its IPv4 routes.
    DeleteAddress(Address),
}

/// What a write does to its object.
#[derive(Clone, Copy)]
enum Verb {
    Put,
    Add,
    Delete,
}

impl WriteRequest {
    fn verb(&self) -> Verb {
        match self {
            Self::PutRoute(_) | Self::PutNeighbour(_) | Self::PutFdb(_) | Self::PutAddress(_) => Verb::Put,
            Self::AddRoute(_) => Verb::Add,
            Self::DeleteRoute(_) | Self::DeleteNeighbour(_) | Self::DeleteFdb(_) | Self::DeleteAddress(_) => {
                Verb::Delete
            }
        }
    }

    fn flags(&self) -> u16 {
        NLM_F_REQUEST
            | match self.verb() {
                Verb::Put => NLM_F_CREATE | NLM_F_REPLACE,
                Verb::Add => NLM_F_CREATE | NLM_F_EXCL,
                Verb::Delete => 0,
            }
    }

    /// Translates the kernel's answer.
    fn outcome(&self, acknowledgement: Acknowledgement) -> Result<(), Error> {
        let already = match self.verb() {
            Verb::Put => acknowledgement.errno == libc::EEXIST,
            Verb::Add => false,
            Verb::Delete => is_gone(acknowledgement.errno),
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
        f.write_str(match self.verb() {
            Verb::Put => "put ",
            Verb::Add => "add ",
            Verb::Delete => "delete ",
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
    /// Carries out all writes in the given order and returns what became of each, in that order.
    /// A write that fails stops no other.
    ///
    /// An [`Error::Unanswered`] write may or may not have been done; read the objects again.
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
            // The kernel tells of a loss before it hands out the answers that it still holds.
            let _ = self.take_answers(&mut answers, libc::MSG_DONTWAIT);
        }
        outcomes.extend(answers.into_outcomes());
    }

    /// Receives until the answer to the last request of the batch.
    fn take_answers(&mut self, answers: &mut Answers<'_>, flags: i32) -> io::Result<()> {
        while !answers.complete {
            answers.take(self.socket.receive(flags)?);
        }
        Ok(())
    }
}

/// What the kernel has said about a batch so far.
struct Answers<'a> {
    batch: &'a [WriteRequest],
    /// The number of the first request.
    first: u32,
    /// What the kernel has said, and about which request; of most it says nothing.
    said: Vec<(usize, Result<(), Error>)>,
    /// Whether the last request was answered, so that no more will come.
    complete: bool,
    /// Whether the kernel may have said more than was received.
    lost: bool,
}

impl<'a> Answers<'a> {
    fn new(batch: &'a [WriteRequest], first: u32) -> Self {
        Self { batch, first, said: Vec::new(), complete: false, lost: false }
    }

    fn take(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            if let Err(reason) = message.and_then(|message| self.take_message(message)) {
                tracing::debug!(%reason, "answer to a batch of writes cannot be read");
                self.lost = true;
            }
        }
    }

    fn take_message(&mut self, message: Message<'_>) -> Result<(), DecodeError> {
        let position = message.sequence.wrapping_sub(self.first) as usize;
        let Some(write) = self.batch.get(position) else {
            tracing::trace!(sequence = message.sequence, "answer to an earlier request ignored");
            return Ok(());
        };
        if message.kind == NLMSG_ERROR {
            self.complete |= position == self.batch.len() - 1;
            self.said.push((position, write.outcome(Acknowledgement::of_error(message)?)));
        }
        Ok(())
    }

    /// Silence is success, unless an answer may have been lost.
    fn into_outcomes(mut self) -> impl Iterator<Item = Result<(), Error>> {
        self.said.sort_by_key(|(position, _)| *position);
        let (lost, mut said) = (self.lost, self.said.into_iter().peekable());
        self.batch.iter().enumerate().map(move |(position, write)| {
            match said.next_if(|(about, _)| *about == position) {
                Some((_, outcome)) => outcome,
                None if lost => Err(Error::Unanswered { object: write.to_string() }),
                None => Ok(()),
            }
        })
    }
}

/// The kernel has executed nothing of a batch when `send` fails.
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
    fn a_write_whose_answer_was_lost_is_never_taken_for_done_or_for_another() {
        let namespace = Namespace::create().expect("this test makes a network namespace: run it as root");
        let mut netlink = Netlink::open_in(&namespace).unwrap();
        // Nothing is written, here or elsewhere: there is no link 999, so every write fails and is answered.
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
