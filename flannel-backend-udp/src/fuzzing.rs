//! Entry points for fuzzers: each runs the pure packet code on arbitrary bytes and checks its invariants.
//!
//! The fuzz targets in `fuzz/` call these functions, and the tests call them with random bytes. They panic when an invariant
//! is violated.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::forward::{self, Outbox};
use crate::offload::coalesce::Coalescer;
use crate::offload::split::{MAX_PACKET, Segments};
use crate::offload::virtio::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::icmp::{self, IcmpError};
use crate::packet::{Header, decrement_ttl};
use crate::peers::{Hop, PeerTable, Routing};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 64, 2));

/// Takes a packet as read from the device, with its virtio header: each packet sent must be accepted by its receiver.
pub fn outbound(bytes: &[u8]) {
    let routing = routing();
    let mut bytes = bytes.to_vec();
    bytes.truncate(VIRTIO_HEADER + MAX_PACKET);
    let Some(header) = VirtioHeader::read(&bytes) else { return };
    let packet = &mut bytes[VIRTIO_HEADER..];
    let Ok(hop) = forward::outbound(&routing, packet) else { return };
    let Ok(mut segments) = Segments::new(&header, packet) else { return };
    let (count, mut outbox, mut sent) = (segments.left(), Outbox::new(), 0);
    loop {
        outbox.push(hop, &mut segments);
        for burst in outbox.bursts() {
            sent += outbox.packets(burst).count();
            let parts: usize = outbox.pieces(burst).map(<[u8]>::len).sum();
            assert!(parts == burst.bytes && burst.packets <= 64, "a burst matches its header");
            for packet in outbox.packets(burst) {
                let header = Header::read(packet).expect("a sent packet has a valid header");
                assert!(header.total <= packet.len() || segments.left() == 0 && count == 1);
            }
        }
        if segments.left() == 0 {
            break;
        }
        assert!(!outbox.is_empty(), "an empty outbox has room for a packet");
        outbox.clear();
    }
    assert_eq!(sent, count, "every packet is sent once");
}

/// Takes received datagrams, each after a two-byte length. Coalescing and splitting must return the packets with a
/// decremented TTL.
pub fn inbound(bytes: &[u8]) {
    let routing = routing();
    let mut coalescer = Coalescer::new();
    let (mut rest, mut expected, mut out) = (bytes, Vec::new(), Vec::new());
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (datagram, after) = after.split_at(usize::from(u16::from_be_bytes(*len)).min(after.len()));
        rest = after;
        for trouble in [IcmpError::NoRoute, IcmpError::TimeExceeded, IcmpError::TooBig(1280)] {
            let mut message = [0; 1280];
            if let Some(len) = icmp::write(&mut message, IpAddr::from([10, 5, 1, 0]), trouble, datagram) {
                assert_eq!(Header::read(&message[..len]).map(|header| header.total), Some(len));
            }
        }
        let Ok((_, _, len)) = forward::inbound(&routing, PEER, datagram, None) else { continue };
        if !coalescer.has_room() {
            apart(&mut coalescer, bytes, &mut out);
        }
        let start = bytes.len() - rest.len() - datagram.len();
        coalescer.push(bytes, start..start + len);
        let mut later = datagram[..len].to_vec();
        decrement_ttl(&mut later);
        expected.push(later);
    }
    apart(&mut coalescer, bytes, &mut out);
    expected.iter_mut().chain(&mut out).for_each(|packet| normalize(packet));
    // Flows may be reordered, packets of one flow may not; property tests check that.
    expected.sort_unstable();
    out.sort_unstable();
    assert_eq!(out, expected);
}

/// Clears the fields in which equal packets may differ: the identification of an atomic datagram (RFC 6864, section 4.1)
/// with the header checksum, and the two representations of zero in a TCP checksum.
fn normalize(packet: &mut [u8]) {
    let (transport, protocol) = if packet[0] >> 4 == 6 { (40, packet[6]) } else { (20, packet[9]) };
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    if protocol == crate::packet::TCP
        && let Some(checksum) = packet.get_mut(transport + 16..transport + 18)
        && checksum == [0xff; 2]
    {
        checksum.fill(0);
    }
}

/// Splits coalesced packets.
fn apart(coalescer: &mut Coalescer, buffer: &[u8], out: &mut Vec<Vec<u8>>) {
    let mut room = vec![0; MAX_PACKET];
    for joined in coalescer.finish(buffer) {
        let bytes = joined.parts().collect::<Vec<_>>().concat();
        let header = VirtioHeader::read(&bytes).expect("a written packet has a virtio header");
        let packet = &bytes[VIRTIO_HEADER..];
        let mut segments = Segments::new(&header, packet).expect("a coalesced packet can be split");
        while let Some(len) = segments.write_next(&mut room) {
            out.push(room[..len].to_vec());
        }
        assert_eq!(segments.left(), 0);
    }
}

/// Returns routing with one peer for all addresses.
fn routing() -> Routing {
    let hop = |subnet: &str| {
        let subnet = subnet.parse().ok()?;
        Some(Hop { subnet, address: SocketAddr::new(PEER, 8285), counters: Arc::default() })
    };
    let hops = ["0.0.0.0/0", "::/0"].into_iter().filter_map(hop).collect();
    Routing { peers: PeerTable::new(hops), own_v4: None, own_v6: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::virtio::{Gso, GsoKind};
    use crate::packet::samples::Sample;
    use proptest::prelude::*;

    /// A valid packet with some bytes changed, which passes more checks than random bytes.
    fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (any::<bool>(), any::<bool>(), 0..300usize, changes).prop_map(|(is_v6, is_tcp, len, changes)| {
            let base = if is_v6 { Sample::v6() } else { Sample::default() };
            let sample = Sample { payload: vec![3; len], ..base };
            let mut packet = if is_tcp { sample.tcp() } else { sample.udp() };
            for (at, value) in changes {
                *at.get_mut(&mut packet) = value;
            }
            packet
        })
    }

    proptest! {
        #[test]
        fn any_packet_from_the_device_keeps_the_invariants(packet in nearly_right(), kind in 0..4u8, size: u16, start in 0..60u16) {
            let kind = [None, Some(GsoKind::TcpV4), Some(GsoKind::TcpV6), Some(GsoKind::Udp)][usize::from(kind)];
            let gso = kind.map(|kind| Gso { kind, size: size % 400 });
            let header = VirtioHeader { checksum: Some((start, 16)), gso, header_len: size };
            outbound(&[&header.to_bytes()[..], &packet].concat());
            outbound(&packet);
        }

        #[test]
        fn any_datagrams_keep_the_invariants(packets in prop::collection::vec(nearly_right(), 0..20)) {
            let framed = |packet: &Vec<u8>| [&(packet.len() as u16).to_be_bytes()[..], packet].concat();
            inbound(&packets.iter().flat_map(framed).collect::<Vec<u8>>());
        }
    }
}
