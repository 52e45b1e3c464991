//! Each segment equals the packet that the sender's host would have built without offloads.

use proptest::prelude::*;

use super::*;
use crate::offload::virtio::Gso;
use crate::packet::samples::{Sample, is_right};
use crate::packet::{Header, UDP};

/// Turns a whole packet into a GSO packet as the kernel delivers it, with the sum of the pseudo-header in its checksum
/// field.
pub(crate) fn joined(sample: &Sample, is_tcp: bool, size: u16) -> (VirtioHeader, Vec<u8>) {
    let mut packet = if is_tcp { sample.tcp() } else { sample.udp() };
    let is_v6 = sample.source.is_ipv6();
    let (transport, offset) = (if is_v6 { 40 } else { 20 }, if is_tcp { 16 } else { 6 });
    let addresses = if is_v6 { &packet[8..40] } else { &packet[12..20] };
    let pseudo = Sum::of(addresses).word(if is_tcp { TCP } else { UDP }.into());
    let pseudo = pseudo.double((packet.len() - transport) as u32).fold();
    set_u16(&mut packet, transport + offset, pseudo);
    let kind = match (is_tcp, is_v6) {
        (true, false) => GsoKind::TcpV4,
        (true, true) => GsoKind::TcpV6,
        (false, _) => GsoKind::Udp,
    };
    let checksum = Some((transport as u16, offset as u16));
    // What the kernel states here is not to be trusted.
    let header = VirtioHeader { checksum, gso: Some(Gso { kind, size }), header_len: 9999 };
    (header, packet)
}

pub(crate) fn split(header: &VirtioHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut segments = Segments::new(header, packet)?;
    let mut all = Vec::new();
    let mut room = vec![0xee; MAX_PACKET];
    while let Some(len) = segments.write_next(&mut room) {
        all.push(room[..len].to_vec());
    }
    assert_eq!(segments.left(), 0);
    Ok(all)
}

/// Builds each segment separately, as the reference.
fn model(sample: &Sample, is_tcp: bool, size: usize) -> Vec<Vec<u8>> {
    let parts: Vec<&[u8]> =
        if sample.payload.is_empty() { vec![&[]] } else { sample.payload.chunks(size).collect() };
    let last = parts.len() - 1;
    let segment = |(index, part): (usize, &&[u8])| {
        let mut flags = sample.flags;
        if index < last {
            flags &= !(FIN | PSH);
        }
        if index > 0 {
            flags &= !CWR;
        }
        let segment = Sample {
            identification: sample.identification.wrapping_add(index as u16),
            sequence: sample.sequence.wrapping_add((index * size) as u32),
            flags,
            payload: part.to_vec(),
            ..sample.clone()
        };
        if is_tcp { segment.tcp() } else { segment.udp() }
    };
    parts.iter().enumerate().map(segment).collect()
}

fn sample() -> impl Strategy<Value = Sample> {
    let payload = prop::collection::vec(any::<u8>(), 1..5000);
    (any::<bool>(), any::<u16>(), any::<u32>(), any::<u8>(), 0..10usize, payload).prop_map(
        |(is_v6, identification, sequence, flags, options, payload)| {
            let base = if is_v6 { Sample::v6() } else { Sample::default() };
            Sample { identification, sequence, flags, options: vec![1; options * 4], payload, ..base }
        },
    )
}

proptest! {
    #[test]
    fn segments_are_what_the_host_would_have_made_one_by_one(sample in sample(), is_tcp: bool, size in 1..3000u16) {
        let (header, packet) = joined(&sample, is_tcp, size);
        let segments = split(&header, &packet).unwrap();
        prop_assert_eq!(&segments, &model(&sample, is_tcp, size.into()));
        for segment in &segments {
            prop_assert!(is_right(segment));
            prop_assert_eq!(Header::read(segment).unwrap().total, segment.len());
        }
    }

    #[test]
    fn a_packet_that_stands_for_itself_only_gets_its_checksum(sample in sample(), is_tcp: bool) {
        let (header, packet) = joined(&sample, is_tcp, 1);
        let whole = VirtioHeader { gso: None, ..header };
        let segments = split(&whole, &packet).unwrap();
        prop_assert_eq!(segments.len(), 1);
        prop_assert!(is_right(&segments[0]));
        let nothing_to_do = VirtioHeader::default();
        prop_assert_eq!(split(&nothing_to_do, &segments[0]).unwrap(), segments);
    }

    #[test]
    fn no_bytes_make_it_fail_or_write_more_than_was_said(
        header in prop::array::uniform10(any::<u8>()),
        kind in 0..6u8,
        mut packet in prop::collection::vec(any::<u8>(), 0..200),
        version in prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0x00]),
    ) {
        let mut header = header;
        (header[1], header[5], header[7], header[9]) = (kind, 0, 0, 0);
        if let Some(first) = packet.first_mut() {
            *first = version;
        }
        if let Some(header) = VirtioHeader::read(&header)
            && let Ok(segments) = Segments::new(&header, &packet)
        {
            let count = segments.left();
            prop_assert!(count <= packet.len().max(1));
            prop_assert_eq!(split(&header, &packet).unwrap().len(), count);
        }
    }
}

#[test]
fn a_segment_without_room_is_written_later() {
    let sample = Sample { payload: vec![5; 100], ..Sample::default() };
    let (header, packet) = joined(&sample, true, 60);
    let mut segments = Segments::new(&header, &packet).unwrap();
    let mut room = [0; 200];
    assert_eq!(segments.write_next(&mut room[..99]), None);
    assert_eq!((segments.left(), segments.write_next(&mut room[..100])), (2, Some(100)));
    assert_eq!(segments.write_next(&mut room[..79]), None);
    assert_eq!((segments.write_next(&mut room), segments.left()), (Some(80), 0));
    assert_eq!(segments.write_next(&mut room), None);
}

#[test]
fn a_packet_that_is_not_what_its_header_says_is_refused() {
    let (header, packet) = joined(&Sample::default(), true, 4);
    let gso = |kind, size| VirtioHeader { gso: Some(Gso { kind, size }), ..header };
    assert_eq!(split(&gso(GsoKind::TcpV6, 4), &packet), Err(Malformed), "another family");
    assert_eq!(split(&gso(GsoKind::TcpV4, 0), &packet), Err(Malformed), "pieces of nothing");
    assert_eq!(split(&gso(GsoKind::TcpV4, 65_500), &packet), Err(Malformed), "larger than a packet can be");
    assert_eq!(split(&header, &packet[..39]), Err(Malformed), "without its whole header");
    let elsewhere = VirtioHeader { checksum: Some((24, 16)), ..header };
    assert_eq!(split(&elsewhere, &packet), Err(Malformed), "a transport header elsewhere");
    let outside = VirtioHeader { checksum: Some((20, 60_000)), gso: None, ..header };
    assert_eq!(split(&outside, &packet), Err(Malformed), "a checksum behind its end");
}
