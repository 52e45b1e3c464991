use super::*;
use proptest::prelude::*;

/// An echo request in a VXLAN packet, as a host sends it; the outer MAC addresses are arbitrary.
const ENCAPSULATED: &[u8] = &[
    0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00, // outer Ethernet
    0x45, 0x00, 0x00, 0x52, 0x92, 0x6c, 0x00, 0x00, 0x40, 0x11, 0xd3, 0x7c, 10, 88, 0, 1, 10, 88, 0,
    2, // outer IPv4
    0xca, 0x7c, 0x21, 0x18, 0x00, 0x3e, 0x15, 0x36, // UDP 51836 > 8472
    0x08, 0, 0, 0, 0, 0, 1, 0, // VXLAN, VNI 1
    0x72, 0x0c, 0x2e, 0xba, 0xdc, 0x62, 0xb2, 0xf0, 0xda, 0x4e, 0x93, 0x82, 0x08,
    0x00, // inner Ethernet
    0x45, 0x00, 0x00, 0x20, 0, 1, 0x40, 0x00, 0x3f, 0x01, 0, 0, 172, 30, 71, 0, 172, 30, 78,
    0, // inner IPv4
    0x08, 0x00, 0, 0, 0x12, 0x34, 0, 7, b'p', b'i', b'n', b'g', // echo request
];

#[test]
fn every_field_of_an_encapsulated_packet_is_decoded() {
    let frame = Frame::decode(ENCAPSULATED).unwrap();
    assert_eq!((frame.destination, frame.source), (Mac([2, 0, 0, 0, 0, 2]), Mac([2, 0, 0, 0, 0, 1])));
    let outer = frame.ipv4().unwrap();
    assert_eq!((outer.ttl, outer.tos, outer.dont_fragment, outer.more_fragments), (64, 0, false, false));
    assert_eq!((outer.total_length, outer.identification), (0x52, 0x926c));
    assert_eq!(frame.addresses().unwrap(), ([10, 88, 0, 1].into(), [10, 88, 0, 2].into()));
    let udp = frame.udp().unwrap();
    assert_eq!((udp.source_port, udp.destination_port), (51836, 8472));
    assert_eq!((udp.length, udp.checksum), (0x3e, 0x1536));
    let vxlan = frame.vxlan().unwrap();
    assert_eq!((vxlan.flags, vxlan.group, vxlan.vni), (0x08, 0, 1));
    assert_eq!(vxlan.inner.destination, Mac([0x72, 0x0c, 0x2e, 0xba, 0xdc, 0x62]));
    assert_eq!(vxlan.inner.source, Mac([0xb2, 0xf0, 0xda, 0x4e, 0x93, 0x82]));
    let inner = vxlan.inner.ipv4().unwrap();
    assert_eq!((inner.ttl, inner.dont_fragment), (63, true));
    assert_eq!(inner.destination, Ipv4Addr::new(172, 30, 78, 0));
    let echo = vxlan.inner.icmp().unwrap();
    assert!(echo.is_echo_request());
    assert_eq!((echo.identifier, echo.sequence, echo.payload.as_slice()), (0x1234, 7, b"ping".as_slice()));
}

#[test]
fn a_packet_is_displayed_on_one_line() {
    assert_eq!(
        Frame::decode(ENCAPSULATED).unwrap().to_string(),
        "02:00:00:00:00:01 > 02:00:00:00:00:02 IP 10.88.0.1.51836 > 10.88.0.2.8472 (ttl 64, length 82) UDP, \
         VXLAN flags 0x08 vni 1: b2:f0:da:4e:93:82 > 72:0c:2e:ba:dc:62 IP 172.30.71.0 > 172.30.78.0 \
         (ttl 63, DF, length 32) ICMP echo request id 4660 seq 7, 4 bytes"
    );
}

#[test]
fn vxlan_is_decoded_on_the_given_ports_only() {
    let frame = Frame::decode_with(ENCAPSULATED, &[4789]).unwrap();
    assert_eq!(frame.vxlan(), None);
    assert!(matches!(&frame.udp().unwrap().content, UdpContent::Bytes(bytes) if bytes.len() == 54));
}

#[test]
fn later_fragments_and_truncated_packets_stay_bytes() {
    let mut fragment = ENCAPSULATED.to_vec();
    fragment[20..22].copy_from_slice(&[0x20, 0x03]);
    let frame = Frame::decode(&fragment).unwrap();
    let packet = frame.ipv4().unwrap();
    assert_eq!((packet.more_fragments, packet.fragment_offset), (true, 24));
    assert!(matches!(&packet.transport, Transport::Bytes(bytes) if bytes.len() == 62));
    assert!(matches!(Frame::decode(&ENCAPSULATED[..30]).unwrap().content, FrameContent::Bytes(_)));
    assert!(Frame::decode(&ENCAPSULATED[..13]).is_none());
}

#[test]
fn padding_of_a_short_frame_is_not_payload() {
    let mut padded = ENCAPSULATED[50..].to_vec();
    padded.extend([0; 14]);
    assert_eq!(Frame::decode(&padded).unwrap().icmp().unwrap().payload, b"ping");
}

#[test]
fn ipv6_and_arp_are_decoded() {
    let mut bytes = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    bytes.extend([0x6a, 0xb1, 0x23, 0x45, 0, 12, 58, 255]);
    bytes.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    bytes.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
    bytes.extend([129, 0, 0, 0, 0, 9, 0, 3, 1, 2, 3, 4]);
    let frame = Frame::decode(&bytes).unwrap();
    let packet = frame.ipv6().unwrap();
    assert_eq!((packet.traffic_class, packet.flow_label, packet.hop_limit), (0xab, 0x12345, 255));
    assert!(frame.icmp().unwrap().is_echo_reply());
    assert!(
        frame
            .to_string()
            .ends_with("IP6 fd00::1 > fd00::2 (hlim 255, length 12) ICMP echo reply id 9 seq 3, 4 bytes")
    );

    let mut bytes = vec![0xff; 6];
    bytes.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    assert!(Frame::decode(&bytes).unwrap().to_string().ends_with("ARP who-has 10.0.0.2 tell 10.0.0.1"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Frame::decode(&bytes).map(|frame| frame.to_string());
    }

    #[test]
    fn damaged_packets_do_not_panic(
        changes in proptest::collection::vec((0..ENCAPSULATED.len(), any::<u8>()), 0..8),
        length in 0..=ENCAPSULATED.len(),
        copies in 1..8_usize,
    ) {
        // A packet inside a VXLAN packet makes nested overlays.
        let mut bytes = ENCAPSULATED[..50].repeat(copies);
        bytes.extend(ENCAPSULATED);
        let start = bytes.len() - ENCAPSULATED.len();
        for (position, value) in changes {
            bytes[start + position] = value;
        }
        bytes.truncate(start + length);
        let _ = Frame::decode(&bytes).map(|frame| frame.to_string());
    }
}
