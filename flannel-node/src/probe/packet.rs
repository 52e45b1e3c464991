//! The format of probes.
//!
//! A request and its answer have the same form and the same length, over UDP and as the payload of an ICMP echo:
//!
//! | bytes | what |
//! |---|---|
//! | 0–4 | `FLPR` |
//! | 5 | version, 1; the fifth byte by number 4 |
//! | 6 | 0 for a request, 1 for the answer of a responder |
//! | 7, 8 | reserved |
//! | 9–16 | a secret of the sending process |
//! | 17–20 | the number of the request |
//! | after them | zeros up to the length under test |

use std::net::IpAddr;

const MAGIC: [u8; 5] = *b"FLPR\x01";
const QUESTION: u8 = 0;
const ANSWER: u8 = 1;

/// The bytes of a probe that are not padding.
pub(super) const LEAST: usize = 20;

/// The header of UDP (RFC 768) and of an ICMP echo (RFC 792, RFC 4443): both take 8 bytes.
const HEADER: u32 = 8;

/// Identifies a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ProbeId {
    /// A secret of the sending process, so that a host off the path cannot forge an answer.
    pub(super) secret: u64,
    pub(super) number: u32,
}

/// Returns the header of an IP packet without options, in bytes (RFC 791, RFC 8200).
pub(super) const fn ip_header(address: IpAddr) -> u32 {
    if address.is_ipv4() { 20 } else { 40 }
}

/// Returns the size of the smallest probe to this address, in bytes.
pub(super) const fn smallest(address: IpAddr) -> u32 {
    ip_header(address) + HEADER + LEAST as u32
}

/// Encodes a request for an IP packet of `size` bytes.
pub(super) fn question(mark: ProbeId, to: IpAddr, size: u32) -> Vec<u8> {
    let length = size.saturating_sub(ip_header(to) + HEADER) as usize;
    let mut text = vec![0; length.max(LEAST)];
    text[..5].copy_from_slice(&MAGIC);
    text[5] = QUESTION;
    text[8..16].copy_from_slice(&mark.secret.to_be_bytes());
    text[16..20].copy_from_slice(&mark.number.to_be_bytes());
    text
}

/// Turns a request into its answer in place. Returns false if it isn't a request.
pub(super) fn answer(text: &mut [u8]) -> bool {
    let is_question = text.len() >= LEAST && text[..5] == MAGIC && text[5] == QUESTION;
    if is_question {
        text[5] = ANSWER;
    }
    is_question
}

/// Decodes the ID of an answer over UDP.
pub(super) fn read_answer(text: &[u8]) -> Option<ProbeId> {
    read(text, ANSWER)
}

fn read(text: &[u8], kind: u8) -> Option<ProbeId> {
    if text.len() < LEAST || text[..5] != MAGIC || text[5] != kind {
        return None;
    }
    let secret = u64::from_be_bytes(text[8..16].try_into().ok()?);
    let number = u32::from_be_bytes(text[16..20].try_into().ok()?);
    Some(ProbeId { secret, number })
}

/// Message types of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// Encodes an ICMP echo request with a probe. The kernel sets the checksum of ICMPv6, and the identifier on a ping socket
/// (icmp(7), raw(7)).
pub(super) fn echo_request(question: &[u8], to: IpAddr, mark: ProbeId) -> Vec<u8> {
    let kind = if to.is_ipv4() { ECHO_REQUEST } else { ECHO_REQUEST_V6 };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend((mark.secret as u16).to_be_bytes());
    packet.extend((mark.number as u16).to_be_bytes());
    packet.extend(question);
    if to.is_ipv4() {
        let sum = checksum(&packet).to_be_bytes();
        packet[2..4].copy_from_slice(&sum);
    }
    packet
}

/// Decodes the ID of the probe in an ICMP echo reply from `from`. On a raw IPv4 socket the IP header precedes it.
pub(super) fn read_echo_reply(packet: &[u8], from: IpAddr, has_header: bool) -> Option<ProbeId> {
    let header = match packet.first() {
        // The header length is in units of four bytes.
        Some(first) if has_header => usize::from(first & 15) * 4,
        _ => 0,
    };
    let message = packet.get(header..)?;
    let expected = if from.is_ipv4() { ECHO_REPLY } else { ECHO_REPLY_V6 };
    (message.first() == Some(&expected)).then(|| read(message.get(HEADER as usize..)?, QUESTION))?
}

/// Computes the Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    // The sum of at most 65,535 bytes does not overflow.
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: ProbeId = ProbeId { secret: 0x0102_0304_0506_0708, number: 0x0a0b_0c0d };
    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    #[test]
    fn the_answer_is_as_long_as_the_question_and_no_answer_is_answered() {
        for size in [0, smallest(V4), 576, 1500, 65_535] {
            let mut text = question(MARK, V4, size);
            let asked = text.clone();
            assert_eq!(read_answer(&text), None, "a question is no answer");
            assert!(answer(&mut text));
            assert_eq!((text.len(), read_answer(&text)), (asked.len(), Some(MARK)));
            assert!(!answer(&mut text), "two responders would answer each other for ever");
        }
        assert_eq!(question(MARK, V4, 1450).len(), 1450 - 28);
        assert_eq!(question(MARK, V6, 1430).len(), 1430 - 48);
    }

    #[test]
    fn what_is_no_probe_is_neither_answered_nor_read() {
        let whole = question(MARK, V4, 0);
        for end in 0..whole.len() {
            assert!(!answer(&mut whole[..end].to_vec()), "{end}");
        }
        let mut other = whole.clone();
        other[4] = 2;
        assert!(!answer(&mut other), "another version");
        for garbage in [&b""[..], b"\x45", b"\x4f\0\0\0", &[0xff; 64], &[0x45; 19]] {
            for has_header in [true, false] {
                assert_eq!(read_echo_reply(garbage, V4, has_header), None);
                assert_eq!(read_echo_reply(garbage, V6, has_header), None);
            }
        }
    }

    #[test]
    fn an_echo_request_becomes_a_reply_by_its_type_alone() {
        let request = echo_request(&question(MARK, V4, 0), V4, MARK);
        assert_eq!(checksum(&request), 0, "a sum over what is right is zero");
        assert_eq!(
            read_echo_reply(&request, V4, false),
            None,
            "the kernel shows requests to raw sockets, too"
        );
        let mut reply = request;
        reply[0] = ECHO_REPLY;
        assert_eq!(read_echo_reply(&reply, V4, false), Some(MARK));
        let mut with_header = vec![0x46; 24];
        with_header.extend(&reply);
        assert_eq!(read_echo_reply(&with_header, V4, true), Some(MARK));
        let mut reply = echo_request(&question(MARK, V6, 0), V6, MARK);
        reply[0] = ECHO_REPLY_V6;
        assert_eq!(read_echo_reply(&reply, V6, false), Some(MARK));
    }
}
