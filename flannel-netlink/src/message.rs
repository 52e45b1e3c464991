//! Netlink messages on the wire: splits a datagram into messages, reads answers, encodes requests.
//!
//! The typed netlink crates build requests. Answers are read attribute by attribute, and only
//! attributes that this crate uses: a dump contains objects of other programs, and an unknown
//! attribute of theirs must not make it unreadable.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK_TLVS, NLM_F_CAPPED, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NlasIterator, parse_i32, parse_string, parse_u32,
};
use netlink_packet_route::RouteNetlinkMessage;

use crate::error::Error;
use crate::request_writer::append;

/// `sizeof(struct nlmsghdr)`.
pub(crate) const HEADER_LEN: usize = 16;

/// The kernel's explanation in an answer (`enum nlmsgerr_attrs` in `linux/netlink.h`).
const NLMSGERR_ATTR_MSG: u16 = 1;

/// One received message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The bytes after the netlink header.
    pub(crate) payload: &'a [u8],
}

/// A message of any netlink protocol, without the header that [`NetlinkSocket`](crate::NetlinkSocket)
/// writes: a request, or an answer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RawMessage {
    /// The type, such as `RTM_NEWLINK` (`nlmsg_type`).
    pub message_type: u16,
    /// The protocol's own header and the attributes.
    pub payload: Vec<u8>,
}

impl EncodeRequest for RawMessage {
    fn append(&self, buffer: &mut Vec<u8>, flags: u16, sequence: u32) {
        append(buffer, self.message_type, flags, sequence, |request| request.fixed(&self.payload));
        buffer.resize(buffer.len().next_multiple_of(4), 0);
    }
}

impl From<Message<'_>> for RawMessage {
    fn from(message: Message<'_>) -> Self {
        Self { message_type: message.kind, payload: message.payload.to_vec() }
    }
}

/// The messages of one datagram, in order.
#[derive(Debug)]
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match NetlinkBuffer::new_checked(self.rest) {
            Ok(buffer) => {
                let message = Message {
                    kind: buffer.message_type(),
                    flags: buffer.flags(),
                    sequence: buffer.sequence_number(),
                    payload: buffer.payload(),
                };
                let len = (HEADER_LEN + message.payload.len()).next_multiple_of(4);
                self.rest = self.rest.get(len..).unwrap_or_default();
                Some(Ok(message))
            }
            Err(reason) => {
                self.rest = &[];
                Some(Err(reason))
            }
        }
    }
}

/// The kernel's acknowledgement of a request, or its refusal.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Acknowledgement {
    /// 0, or a positive error number.
    pub(crate) errno: i32,
    /// The explanation.
    pub(crate) message: Option<String>,
}

impl Acknowledgement {
    /// Reads an `NLMSG_ERROR`: an error number, the request's header, the rest of the request
    /// unless capped, and attributes (`netlink_ack` in `net/netlink/af_netlink.c`).
    pub(crate) fn of_error(answer: Message<'_>) -> Result<Self, DecodeError> {
        let errno = first_i32(answer.payload)?.saturating_neg();
        let request = answer.payload.get(4..).unwrap_or_default();
        let echoed = if answer.flags & NLM_F_CAPPED != 0 {
            HEADER_LEN
        } else {
            let len = request.get(..4).map(parse_u32).transpose()?.unwrap_or(0);
            usize::try_from(len).unwrap_or(usize::MAX).checked_next_multiple_of(4).unwrap_or(usize::MAX)
        };
        let attributes = request.get(echoed..).unwrap_or_default();
        Ok(Self { errno, message: explanation(answer.flags, attributes) })
    }

    /// Reads an `NLMSG_DONE`, which ends a dump: an error number and attributes.
    pub(crate) fn of_done(answer: Message<'_>) -> Result<Self, DecodeError> {
        if answer.payload.is_empty() {
            return Ok(Self { errno: 0, message: None });
        }
        let errno = first_i32(answer.payload)?.min(0).saturating_neg();
        let attributes = answer.payload.get(4..).unwrap_or_default();
        Ok(Self { errno, message: explanation(answer.flags, attributes) })
    }

    /// Converts a refusal into an error about `object`.
    pub(crate) fn into_result(self, object: impl ToString) -> Result<(), Error> {
        if self.errno == 0 {
            return Ok(());
        }
        Err(Error::Kernel {
            object: object.to_string(),
            message: self.message,
            source: io::Error::from_raw_os_error(self.errno),
        })
    }
}

/// A request that can be encoded.
pub(crate) trait EncodeRequest {
    /// Appends the request to a buffer that may hold others.
    fn append(&self, buffer: &mut Vec<u8>, flags: u16, sequence: u32);
}

impl EncodeRequest for RouteNetlinkMessage {
    fn append(&self, buffer: &mut Vec<u8>, flags: u16, sequence: u32) {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(self.clone()));
        message.finalize();
        let start = buffer.len();
        let len = message.buffer_len();
        buffer.resize(start + len.next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..start + len]);
    }
}

fn first_i32(payload: &[u8]) -> Result<i32, DecodeError> {
    parse_i32(payload.get(..4).unwrap_or(payload))
}

/// Reads the explanation; one that cannot be read is ignored.
fn explanation(flags: u16, attributes: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .and_then(|attribute| parse_string(attribute.value()).ok())
}

/// Builds a message as the kernel would send it.
#[cfg(test)]
pub(crate) fn received(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_LEN + payload.len()).expect("a test message is small");
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Encodes a request.
#[cfg(test)]
pub(crate) fn encode(request: &impl EncodeRequest) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.append(&mut bytes, 0, 1);
    bytes
}

/// Reads a request as if it had been received: whole, and cut at every length, where the reader
/// must only not panic.
#[cfg(test)]
pub(crate) fn read_back<T>(bytes: &[u8], read: impl Fn(Message<'_>) -> Result<T, DecodeError>) -> T {
    let whole = Messages::new(bytes).next().expect("a message").expect("a whole message");
    for len in 0..whole.payload.len() {
        let _ = read(Message { payload: &whole.payload[..len], ..whole });
    }
    read(whole).expect("what was written can be read")
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NLMSG_ERROR;

    use super::received as message;
    use super::*;

    /// A refusal with an explanation, as the kernel sends it to a socket with `NETLINK_CAP_ACK`.
    fn refusal(flags: u16, echo: &[u8]) -> Vec<u8> {
        let text = b"Nexthop has invalid gateway\0";
        let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
        payload.extend(echo);
        payload.extend(u16::try_from(4 + text.len()).unwrap().to_ne_bytes());
        payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend(text);
        message(NLMSG_ERROR, flags, 7, &payload)
    }

    fn acknowledgement(bytes: &[u8]) -> Result<Acknowledgement, DecodeError> {
        Acknowledgement::of_error(Messages::new(bytes).next().unwrap().unwrap())
    }

    #[test]
    fn the_explanation_is_found_after_a_capped_and_a_complete_request() {
        let expected =
            Acknowledgement { errno: libc::EINVAL, message: Some("Nexthop has invalid gateway".to_owned()) };
        let capped = refusal(NLM_F_CAPPED | NLM_F_ACK_TLVS, &message(24, 0, 7, &[])[..16]);
        assert_eq!(acknowledgement(&capped).unwrap(), expected);
        let whole = refusal(NLM_F_ACK_TLVS, &message(24, 0, 7, &[1; 13]));
        assert_eq!(acknowledgement(&whole).unwrap(), expected);
    }

    #[test]
    fn a_truncated_answer_does_not_panic() {
        let whole = refusal(NLM_F_ACK_TLVS, &message(24, 0, 7, &[1; 13]));
        for len in 0..whole.len() {
            for message in Messages::new(&whole[..len]).flatten() {
                let _ = Acknowledgement::of_error(message);
            }
            // Truncated below the netlink header: the length is right and the payload short.
            let short = message(NLMSG_ERROR, NLM_F_ACK_TLVS, 7, whole.get(16..len).unwrap_or_default());
            let _ = acknowledgement(&short);
        }
    }

    #[test]
    fn a_datagram_is_split_into_messages() {
        let mut datagram = message(24, 2, 1, &[1, 2, 3]);
        datagram.extend(message(25, 0, 2, &[]));
        let read: Vec<_> = Messages::new(&datagram)
            .map(|message| message.map(|message| (message.kind, message.sequence, message.payload.to_vec())))
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(read, [(24, 1, vec![1, 2, 3]), (25, 2, vec![])]);
    }

    #[test]
    fn a_length_beyond_the_datagram_is_an_error() {
        let mut datagram = message(24, 2, 1, &[]);
        datagram[0] = 200;
        let read: Vec<_> = Messages::new(&datagram).collect();
        assert_eq!(read.len(), 1);
        assert!(read[0].is_err());
    }
}
