//! Headers, TTLs and ICMP errors, against captured bytes and simple models.

use std::net::IpAddr;

use proptest::prelude::*;

use super::checksum::Sum;
use super::icmp::{self, IcmpError};
use super::samples::{Sample, is_right};
use super::*;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 5, 1, 0));

fn error_packet(own: IpAddr, error: IcmpError, packet: &[u8]) -> Option<Vec<u8>> {
    let mut message = [0xaa; 1280];
    let len = icmp::write(&mut message, own, error, packet)?;
    Some(message[..len].to_vec())
}

#[test]
fn a_header_gives_addresses_and_lengths() {
    let packet = Sample::default().tcp();
    let header = Header::read(&packet).unwrap();
    assert_eq!(
        (header.source, header.destination),
        (Sample::default().source, Sample::default().destination)
    );
    assert_eq!((header.len, header.total, header.ttl, header.protocol), (20, packet.len(), 64, TCP));
    assert!(header.dont_fragment && !header.is_fragment);
    let packet = Sample::v6().udp();
    let header = Header::read(&packet).unwrap();
    assert_eq!((header.len, header.total, header.protocol), (40, packet.len(), UDP));
    assert_eq!(header.destination, Sample::v6().destination);
}

#[test]
fn invalid_packets_have_no_header() {
    let whole = Sample::default().tcp();
    for len in 0..20 {
        assert_eq!(Header::read(&whole[..len]), None);
    }
    for (at, value) in [(0, 0x44), (0, 0x55), (0, 0x4f), (3, 19)] {
        let mut packet = whole[..40].to_vec();
        packet[2] = 0;
        packet[at] = value;
        assert_eq!(Header::read(&packet), None, "byte {at} is {value:#x}");
    }
    assert_eq!(Header::read(&Sample::v6().tcp()[..39]), None);
}

#[test]
fn fragments_are_recognised() {
    let mut packet = Sample { dont_fragment: false, ..Sample::default() }.udp();
    packet[6] = 0x20;
    let first = Header::read(&packet).unwrap();
    assert!(first.is_fragment && !first.is_later_fragment && !first.dont_fragment);
    (packet[6], packet[7]) = (0, 185);
    let last = Header::read(&packet).unwrap();
    assert!(last.is_fragment && last.is_later_fragment);
}

#[test]
fn an_unknown_destination_is_answered_by_the_rfcs() {
    let packet = Sample::default().udp();
    let message = error_packet(OWN, IcmpError::NoRoute, &packet).unwrap();
    let header = Header::read(&message).unwrap();
    assert_eq!((header.source, header.destination), (OWN, Sample::default().source));
    assert_eq!((header.total, header.protocol, header.ttl), (message.len(), ICMP, 64));
    assert_eq!(Sum::of(&message[..20]).fold(), 0xffff);
    assert_eq!(Sum::of(&message[20..]).fold(), 0xffff);
    assert_eq!((&message[20..22], &message[28..]), (&[3, 0][..], &packet[..]));
}

#[test]
fn a_packet_that_is_too_big_is_answered_with_the_path_mtu() {
    let big = Sample { payload: vec![7; 1400], ..Sample::default() };
    let message = error_packet(OWN, IcmpError::TooBig(1372), &big.udp()).unwrap();
    assert_eq!((message.len(), message[20], message[21], u16_at(&message, 26)), (576, 3, 4, 1372));
    let big = Sample { payload: vec![7; 1400], ..Sample::v6() };
    let own = Sample::v6().destination;
    let message = error_packet(own, IcmpError::TooBig(1372), &big.udp()).unwrap();
    assert_eq!((message.len(), message[40], message[41], u32_at(&message, 44)), (1280, 2, 0, 1372));
    assert!(is_right(&message));
}

#[test]
fn icmp_errors_are_not_answered() {
    let error = error_packet(OWN, IcmpError::NoRoute, &Sample::default().udp()).unwrap();
    assert_eq!(error_packet(OWN, IcmpError::TimeExceeded, &error), None);
    let echo = Sample::default().packet(ICMP, vec![8, 0, 0, 0, 0, 1, 0, 1], 2);
    assert!(error_packet(OWN, IcmpError::TimeExceeded, &echo).is_some());
    let mut cut = echo.clone();
    cut.truncate(20);
    assert_eq!(
        error_packet(OWN, IcmpError::TimeExceeded, &cut),
        None,
        "a truncated packet may be an ICMP error"
    );
    let own = Sample::v6().destination;
    let error = error_packet(own, IcmpError::NoRoute, &Sample::v6().udp()).unwrap();
    assert_eq!(error_packet(own, IcmpError::NoRoute, &error), None);
}

#[test]
fn multicast_fragments_and_unspecified_sources_are_not_answered() {
    let refused = |sample: Sample| error_packet(OWN, IcmpError::NoRoute, &sample.udp()).is_none();
    let to = |octets: [u8; 4]| Sample { destination: octets.into(), ..Sample::default() };
    let from = |octets: [u8; 4]| Sample { source: octets.into(), ..Sample::default() };
    assert!(refused(to([224, 0, 0, 1])) && refused(to([255; 4])));
    for nobody in [[0; 4], [127, 0, 0, 1], [224, 0, 0, 5], [255; 4], [240, 0, 0, 1]] {
        assert!(refused(from(nobody)), "{nobody:?}");
    }
    let mut part = Sample::default().udp();
    part[7] = 1;
    assert_eq!(error_packet(OWN, IcmpError::NoRoute, &part), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let header = Header::read(&bytes);
        for icmp_error in [IcmpError::NoRoute, IcmpError::TimeExceeded, IcmpError::TooBig(1000)] {
            if let Some(message) = error_packet(OWN, icmp_error, &bytes) {
                prop_assert!(header.is_some() && Header::read(&message).is_some());
            }
        }
        let mut bytes = bytes;
        decrement_ttl(&mut bytes);
    }

    #[test]
    fn a_decremented_ttl_leaves_valid_checksums(ttl in 2u8.., id: u16, payload in prop::collection::vec(any::<u8>(), 0..50)) {
        for sample in [Sample::default(), Sample::v6()] {
            let mut packet = Sample { ttl, identification: id, payload: payload.clone(), ..sample }.tcp();
            decrement_ttl(&mut packet);
            prop_assert!(is_right(&packet));
            prop_assert_eq!(Header::read(&packet).unwrap().ttl, ttl - 1);
        }
    }
}
