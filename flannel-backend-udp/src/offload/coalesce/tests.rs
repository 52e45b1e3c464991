//! What is joined and taken apart again is what came, in order.

use proptest::prelude::*;

use super::*;
use crate::offload::split::Segments;
use crate::packet::Header;
use crate::packet::samples::{Sample, is_right};

/// Joins packets, and takes what comes out apart again with the code that is tested against the slow model.
fn through(packets: &[Vec<u8>]) -> (usize, Vec<Vec<u8>>) {
    let mut coalescer = Coalescer::new();
    let buffer = packets.concat();
    let (mut writes, mut out, mut start) = (0, Vec::new(), 0);
    let mut drain = |coalescer: &mut Coalescer| {
        for joined in coalescer.finish(&buffer) {
            writes += 1;
            assert!(joined.parts().count() <= PIECES + 1);
            let bytes = joined.parts().collect::<Vec<_>>().concat();
            let header = VirtioHeader::read(&bytes).unwrap();
            assert_eq!(joined.is_joined(), header.gso.is_some());
            let mut segments = Segments::new(&header, &bytes[VIRTIO_HEADER..]).unwrap();
            let mut room = vec![0; MAX_PACKET];
            while let Some(len) = segments.write_next(&mut room) {
                out.push(room[..len].to_vec());
            }
        }
    };
    for packet in packets {
        if !coalescer.has_room() {
            drain(&mut coalescer);
        }
        coalescer.push(&buffer, start..start + packet.len());
        start += packet.len();
    }
    drain(&mut coalescer);
    (writes, out)
}

fn one_hop_later(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    decrement_ttl(&mut packet);
    packet
}

/// A stream of so many bytes in each packet.
fn stream(base: &Sample, sizes: &[usize], is_tcp: bool) -> Vec<Vec<u8>> {
    let (mut sequence, mut identification) = (base.sequence, base.identification);
    let mut packets = Vec::new();
    for (number, size) in sizes.iter().enumerate() {
        let payload = (0..*size).map(|byte| (byte + number * 7) as u8).collect();
        let sample = Sample { sequence, identification, payload, ..base.clone() };
        packets.push(if is_tcp { sample.tcp() } else { sample.udp() });
        sequence = sequence.wrapping_add(*size as u32);
        identification = identification.wrapping_add(1);
    }
    packets
}

#[test]
fn a_stream_becomes_one_write() {
    for base in [Sample::default(), Sample::v6()] {
        for is_tcp in [true, false] {
            let packets = stream(&base, &[1400; 44], is_tcp);
            let (writes, out) = through(&packets);
            assert_eq!(writes, 1, "tcp: {is_tcp}");
            assert_eq!(out, packets.iter().map(|packet| one_hop_later(packet)).collect::<Vec<_>>());
            let (writes, out) = through(&stream(&base, &[100; 100], is_tcp));
            assert_eq!((writes, out.len()), (2, 100), "no more pieces than a write takes, tcp: {is_tcp}");
        }
    }
}

#[test]
fn the_header_marks_the_checksum_as_verified() {
    let mut coalescer = Coalescer::new();
    let packet = Sample::default().tcp();
    coalescer.push(&packet, 0..packet.len());
    let joined = coalescer.finish(&packet).next().unwrap();
    assert_eq!(VirtioHeader::read(joined.parts().next().unwrap()).unwrap().checksum, Some((20, 16)));
}

#[test]
fn a_packet_with_a_wrong_checksum_is_passed_on_as_it_is() {
    for at in [10, 30, 45] {
        let mut packets = stream(&Sample::default(), &[100; 3], true);
        packets[1][at] ^= 1;
        let (writes, out) = through(&packets);
        assert_eq!((writes, &out[1]), (3, &one_hop_later(&packets[1])), "byte {at}");
        assert!(!is_right(&out[1]));
    }
}

#[test]
fn what_does_not_follow_is_not_joined() {
    let base = Sample::default();
    let first = Sample { payload: vec![1; 100], ..base.clone() };
    let next = Sample { sequence: 101, identification: 2, ..first.clone() };
    let writes = |second: &Sample| through(&[first.tcp(), second.tcp()]).0;
    assert_eq!(writes(&next), 1);
    for (what, second) in [
        ("a gap", Sample { sequence: 102, ..next.clone() }),
        ("another port", Sample { ports: (1, 2), ..next.clone() }),
        ("another time to live", Sample { ttl: 63, ..next.clone() }),
        ("a larger payload", Sample { payload: vec![1; 101], ..next.clone() }),
        ("SYN", Sample { flags: 0x12, ..next.clone() }),
        ("CWR", Sample { flags: 0x90, ..next.clone() }),
        ("options", Sample { options: vec![1; 4], ..next.clone() }),
        ("may be cut", Sample { dont_fragment: false, ..next.clone() }),
        ("another host", Sample { source: [10, 5, 2, 8].into(), ..next.clone() }),
    ] {
        assert_eq!(writes(&second), 2, "{what}");
    }
    let cut = |identification| {
        let may_be_cut = |sample: &Sample| Sample { dont_fragment: false, ..sample.clone() }.tcp();
        through(&[may_be_cut(&first), may_be_cut(&Sample { identification, ..next.clone() })]).0
    };
    assert_eq!((cut(2), cut(3)), (1, 2), "the identification counts where a packet may be cut");
}

#[test]
fn a_push_is_the_last_of_its_packet() {
    let mut packets = stream(&Sample::default(), &[100; 4], true);
    let push =
        Sample { sequence: 101, identification: 2, flags: 0x18, payload: vec![1; 100], ..Sample::default() };
    packets[1] = push.tcp();
    let (writes, out) = through(&packets);
    assert_eq!(writes, 2);
    assert_eq!(out[1], one_hop_later(&packets[1]));
}

#[test]
fn without_offloads_every_packet_is_written_separately() {
    let mut coalescer = Coalescer::new();
    (coalescer.joins_tcp, coalescer.joins_udp) = (false, false);
    let packets = stream(&Sample::default(), &[100; 3], true);
    let (buffer, mut start) = (packets.concat(), 0);
    for packet in &packets {
        coalescer.push(&buffer, start..start + packet.len());
        start += packet.len();
    }
    let written: Vec<_> = coalescer
        .finish(&buffer)
        .map(|joined| joined.parts().collect::<Vec<_>>().concat()[VIRTIO_HEADER..].to_vec())
        .collect();
    assert_eq!(written, packets.iter().map(|packet| one_hop_later(packet)).collect::<Vec<_>>());
}

/// One of a few flows, and how its next packet is.
fn step() -> impl Strategy<Value = (u16, bool, bool, usize, u8, bool)> {
    let size = prop::sample::select(vec![0usize, 1, 99, 100, 100, 100, 1400]);
    let flags = prop::sample::select(vec![0x10u8, 0x10, 0x10, 0x18, 0x11, 0x12, 0x14, 0x90]);
    (0..3u16, any::<bool>(), any::<bool>(), size, flags, prop::bool::weighted(0.05))
}

proptest! {
    #[test]
    fn everything_arrives_once_unchanged_and_in_order_within_its_flow(steps in prop::collection::vec(step(), 1..200)) {
        let mut next = std::collections::BTreeMap::new();
        let mut packets = Vec::new();
        for (port, is_tcp, is_v6, size, flags, is_corrupt) in steps {
            let flow = (port, is_tcp, is_v6);
            let (sequence, identification) = next.entry(flow).or_insert((u32::MAX - 500, u16::MAX - 3));
            let base = if is_v6 { Sample::v6() } else { Sample::default() };
            let payload = vec![packets.len() as u8; size];
            let sample = Sample { ports: (port, 9), sequence: *sequence, identification: *identification, flags, payload, ..base };
            *sequence = sequence.wrapping_add(size as u32);
            *identification = identification.wrapping_add(1);
            let mut packet = if is_tcp { sample.tcp() } else { sample.udp() };
            if is_corrupt && size > 0 {
                *packet.last_mut().unwrap() ^= 0x40;
            }
            packets.push((flow, packet));
        }
        let all: Vec<Vec<u8>> = packets.iter().map(|(_, packet)| packet.clone()).collect();
        let (_, out) = through(&all);
        let by_flow = |packets: &[Vec<u8>]| {
            let mut flows: std::collections::BTreeMap<_, Vec<Vec<u8>>> = Default::default();
            for packet in packets {
                let start = if packet[0] >> 4 == 4 { 20 } else { 40 };
                let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
                flows.entry((start, protocol, packet[start], packet[start + 1])).or_default().push(packet.clone());
            }
            flows
        };
        let expected: Vec<Vec<u8>> = all.iter().map(|packet| one_hop_later(packet)).collect();
        prop_assert_eq!(out.len(), expected.len());
        prop_assert_eq!(by_flow(&out), by_flow(&expected));
    }

    #[test]
    fn no_bytes_make_it_fail(
        packets in prop::collection::vec((prop::sample::select(vec![0x45u8, 0x60, 0x46]), prop::collection::vec(any::<u8>(), 0..120)), 0..40),
    ) {
        let mut coalescer = Coalescer::new();
        let (mut buffer, mut places) = (Vec::new(), Vec::new());
        for (version, mut packet) in packets {
            if let Some(first) = packet.first_mut() {
                *first = version;
            }
            let len = packet.len();
            if len >= 20 && version != 0x60 {
                set_u16(&mut packet, 2, len as u16);
            }
            if let Some(header) = Header::read(&packet).filter(|header| header.total <= len) {
                places.push(buffer.len()..buffer.len() + header.total);
                buffer.extend(packet);
            }
        }
        let has_header = |joined: Joined<'_>| VirtioHeader::read(joined.parts().next().unwrap()).is_some();
        for place in places {
            if !coalescer.has_room() {
                prop_assert!(coalescer.finish(&buffer).all(has_header));
            }
            coalescer.push(&buffer, place);
        }
        prop_assert!(coalescer.finish(&buffer).all(has_header));
    }
}
