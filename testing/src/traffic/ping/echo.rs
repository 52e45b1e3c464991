//! Encodes and decodes echo messages (RFC 792, RFC 4443 section 4).

/// The size of an IPv4 header with all options, which a raw socket returns too, and the ICMP header.
pub(super) const MAX_HEADERS: usize = 60 + HEADER;
const HEADER: usize = 8;

/// Encodes an echo request. The kernel fills in the checksum for IPv6 (RFC 3542, section 3.1).
pub(super) fn request(is_ipv4: bool, identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if is_ipv4 { 8 } else { 128 };
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend([kind, 0, 0, 0]);
    message.extend(identifier.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    if is_ipv4 {
        let checksum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&checksum);
    }
    message
}

/// An echo reply as a raw socket receives it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Reply<'a> {
    pub(super) identifier: u16,
    pub(super) sequence: u16,
    pub(super) payload: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Decodes a received packet, which begins with its IPv4 header, or with ICMPv6. Returns `None` if it is not an
    /// echo reply.
    pub(super) fn decode(is_ipv4: bool, packet: &'a [u8]) -> Option<Self> {
        let header_length = if is_ipv4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
        let (header, payload) = packet.get(header_length..)?.split_first_chunk::<HEADER>()?;
        let [kind, code, _, _, identifier @ .., s1, s2] = *header;
        let expected = if is_ipv4 { 0 } else { 129 };
        (kind == expected && code == 0).then_some(Self {
            identifier: u16::from_be_bytes(identifier),
            sequence: u16::from_be_bytes([s1, s2]),
            payload,
        })
    }
}

/// Returns the internet checksum of an ICMP message whose checksum field is zero (RFC 1071).
fn checksum(message: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in message.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_has_a_valid_checksum() {
        // The sum over a message that includes its checksum is all ones.
        for payload in [&b""[..], b"odd", b"even", &[0xff; 301]] {
            let message = request(true, 0x1234, 0xfffe, payload);
            let sum: u64 = message
                .chunks(2)
                .map(|pair| u64::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u64::from(*low)))
                .sum();
            assert_eq!(sum % 0xffff, 0, "{payload:?}");
        }
    }

    #[test]
    fn only_echo_replies_are_decoded() {
        let mut packet = vec![0x46; 24];
        packet.extend([0, 0, 9, 9, 0x12, 0x34, 0, 7, b'x']);
        let reply = Reply { identifier: 0x1234, sequence: 7, payload: b"x" };
        assert_eq!(Reply::decode(true, &packet), Some(reply));
        packet[24] = 3;
        assert_eq!(Reply::decode(true, &packet), None);
        let reply = Reply { identifier: 1, sequence: 2, payload: b"" };
        assert_eq!(Reply::decode(false, &[129, 0, 0, 0, 0, 1, 0, 2]), Some(reply));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (Reply::decode(true, &packet), Reply::decode(false, &packet));
        }
    }
}
