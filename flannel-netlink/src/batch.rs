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

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR};
use netlink_packet_route::RouteNetlinkMessage;

use crate::address::Address;
use crate::error::{Error, is_gone};
use crate::fdb::FdbEntry;
use crate::message::{Messages, Verdict, append_request};
use crate::neighbour::Neighbour;
use crate::route::Route;
use crate::socket::{Netlink, lost_or_failed};

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
pub enum Write {
    /// Puts a route, in the place of the one with the same destination, metric and table. IPv6
    /// refuses to replace a route on one link by one on another (`EEXIST` apart, see
    /// `fib6_add_rt2node` in `net/ipv6/ip6_fib.c`): delete that one in the same batch.
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

impl Write {
    fn request(&self) -> RouteNetlinkMessage {
        match self {
            Self::PutRoute(route) | Self::AddRoute(route) => RouteNetlinkMessage::NewRoute(route.message()),
            Self::DeleteRoute(route) => RouteNetlinkMessage::DelRoute(route.message()),
            Self::PutNeighbour(neighbour) => RouteNetlinkMessage::NewNeighbour(neighbour.message()),
            Self::DeleteNeighbour(neighbour) => RouteNetlinkMessage::DelNeighbour(neighbour.message()),
            Self::PutFdb(entry) => RouteNetlinkMessage::NewNeighbour(entry.message()),
            Self::DeleteFdb(entry) => RouteNetlinkMessage::DelNeighbour(entry.message()),
            Self::PutAddress(address) => RouteNetlinkMessage::NewAddress(address.message()),
            Self::DeleteAddress(address) => RouteNetlinkMessage::DelAddress(address.message()),
        }
    }

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

    /// What the kernel's verdict means for the caller.
    fn outcome(&self, verdict: Verdict) -> Result<(), Error> {
        let already = match self.verb() {
            Verb::Put => verdict.errno == libc::EEXIST,
            Verb::Add => false,
            Verb::Delete => is_gone(verdict.errno),
        };
        if already { Ok(()) } else { verdict.into_result(self) }
    }

    fn unanswered(&self) -> Error {
        Error::Unanswered { object: self.to_string() }
    }
}

impl fmt::Display for Write {
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
    pub fn apply(&mut self, writes: &[Write]) -> Vec<Result<(), Error>> {
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut requests = Vec::with_capacity(BATCH.min(writes.len()) * REQUEST_LEN);
        for batch in writes.chunks(BATCH) {
            requests.clear();
            self.apply_batch(batch, &mut requests, &mut outcomes);
        }
        outcomes
    }

    pub(crate) fn write_one(&mut self, write: Write) -> Result<(), Error> {
        self.apply(std::slice::from_ref(&write)).pop().unwrap_or(Ok(()))
    }

    fn apply_batch(
        &mut self,
        batch: &[Write],
        requests: &mut Vec<u8>,
        outcomes: &mut Vec<Result<(), Error>>,
    ) {
        // `batch` has at most BATCH elements, so its length and every position fit.
        let first = self.reserve_sequence(batch.len() as u32);
        let last = batch.len() - 1;
        for (position, write) in batch.iter().enumerate() {
            let ask = if position == last { NLM_F_ACK } else { 0 };
            append_request(
                requests,
                write.request(),
                write.flags() | ask,
                first.wrapping_add(position as u32),
            );
        }
        if let Err(error) = self.send_bytes(requests) {
            outcomes.extend(batch.iter().map(|write| Err(not_sent(write, &error))));
            return;
        }
        let base = outcomes.len();
        outcomes.extend(batch.iter().map(|_| Ok(())));
        let answered = self.take_answers(batch, first, &mut outcomes[base..]);
        if let Err((error, verdicts)) = answered {
            tracing::debug!(%error, writes = batch.len(), "answers to a batch of writes were lost");
            self.drain();
            for ((write, outcome), answered) in batch.iter().zip(&mut outcomes[base..]).zip(verdicts) {
                if !answered {
                    *outcome = Err(write.unanswered());
                }
            }
        }
    }

    /// Reads the answers until the one to the last request. On failure, tells which requests
    /// were answered before it.
    fn take_answers(
        &mut self,
        batch: &[Write],
        first: u32,
        outcomes: &mut [Result<(), Error>],
    ) -> Result<(), (Error, Vec<bool>)> {
        let mut answered = vec![false; batch.len()];
        loop {
            let datagram = match self.receive() {
                Ok(datagram) => datagram,
                Err(error) => return Err((lost_or_failed(&"a batch of writes", error), answered)),
            };
            for message in Messages::new(datagram) {
                let verdict = message.and_then(|message| {
                    (message.kind == NLMSG_ERROR)
                        .then(|| Verdict::of_error(message).map(|verdict| (message.sequence, verdict)))
                        .transpose()
                });
                let (sequence, verdict) = match verdict {
                    Ok(Some(found)) => found,
                    Ok(None) => continue,
                    Err(reason) => return Err((Error::malformed("a batch of writes", &reason), answered)),
                };
                let position = sequence.wrapping_sub(first) as usize;
                let Some(write) = batch.get(position) else {
                    tracing::trace!(sequence, "answer to an earlier request ignored");
                    continue;
                };
                outcomes[position] = write.outcome(verdict);
                answered[position] = true;
                if position == batch.len() - 1 {
                    return Ok(());
                }
            }
        }
    }
}

/// Nothing of a batch was executed when `send` failed.
fn not_sent(write: &Write, error: &std::io::Error) -> Error {
    Error::Kernel {
        object: write.to_string(),
        message: Some("the batch could not be sent".to_owned()),
        source: error.raw_os_error().map_or_else(|| error.kind().into(), std::io::Error::from_raw_os_error),
    }
}
