//! Next hops, drops and bursts.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::offload::virtio::VirtioHeader;
use crate::packet::samples::{Sample, is_right};
use crate::peers::{Hop, PeerTable};

/// Peer `n` has the subnet 10.5.n.0/24 and the underlay address 192.168.64.n.
fn routing(peers: impl IntoIterator<Item = u8>) -> Routing {
    let hop = |n: u8| Hop {
        subnet: format!("10.5.{n}.0/24").parse().unwrap(),
        address: SocketAddr::from(([192, 168, 64, n], 8285)),
        counters: Arc::default(),
    };
    let peers = PeerTable::new(peers.into_iter().map(hop).collect());
    Routing { peers, own_v4: Some([10, 5, 9, 0].into()), own_v6: None }
}

fn to(octets: [u8; 4]) -> Sample {
    Sample { destination: octets.into(), ..Sample::default() }
}

fn host(n: u8) -> IpAddr {
    IpAddr::from([192, 168, 64, n])
}

#[test]
fn a_packet_goes_to_the_peer_of_its_destination_with_a_lower_ttl() {
    let mut packet = to([10, 5, 3, 7]).udp();
    assert_eq!(outbound(&routing([2, 3]), &mut packet), Ok(1));
    assert!(is_right(&packet));
    assert_eq!(Header::read(&packet).unwrap().ttl, 63);
}

#[test]
fn unroutable_packets_are_refused_with_a_reason() {
    let refused = |mut packet: Vec<u8>| outbound(&routing([2]), &mut packet).unwrap_err();
    let answered = |reason, icmp_error| Refusal { reason, icmp_error: Some(icmp_error) };
    assert_eq!(refused(to([10, 5, 3, 7]).udp()), answered(DropReason::NoRoute, IcmpError::NoRoute));
    for ttl in [0, 1] {
        let old = Sample { ttl, ..to([10, 5, 2, 7]) };
        assert_eq!(refused(old.udp()), answered(DropReason::TimeExceeded, IcmpError::TimeExceeded));
    }
    for group in [[224, 0, 0, 251], [255; 4]] {
        assert_eq!(refused(to(group).udp()), Refusal::silent(DropReason::Group));
    }
    let whole = to([10, 5, 2, 7]).udp();
    assert_eq!(refused(whole[..30].to_vec()), Refusal::silent(DropReason::MalformedOut));
    assert_eq!(refused(Vec::new()), Refusal::silent(DropReason::MalformedOut));
}

#[test]
fn a_datagram_is_accepted_only_from_the_peer_of_its_inner_source() {
    let routing = routing([2, 3]);
    let packet = Sample::default().udp();
    let source = Sample::default().source;
    assert_eq!(inbound(&routing, host(2), &packet, None), Ok((source, 0, packet.len())));
    let wrong = Err(Refusal::silent(DropReason::WrongSource));
    assert_eq!(
        inbound(&routing, host(3), &packet, None),
        wrong,
        "a peer sends from the subnet of a different peer"
    );
    assert_eq!(inbound(&routing, host(4), &packet, None), wrong, "a stranger");
    let foreign = Sample { source: [9, 9, 9, 9].into(), ..Sample::default() };
    assert_eq!(inbound(&routing, host(2), &foreign.udp(), None), wrong);
    let known = Some((source, 0));
    assert_eq!(
        inbound(&routing, host(2), &foreign.udp(), known),
        wrong,
        "an unknown source after a known one"
    );
}

#[test]
fn trailing_bytes_are_ignored_and_truncated_packets_refused() {
    let routing = routing([2]);
    let packet = Sample::default().udp();
    let longer = [&packet[..], b"more"].concat();
    assert_eq!(inbound(&routing, host(2), &longer, None).unwrap().2, packet.len());
    for len in 0..packet.len() {
        let cut = inbound(&routing, host(2), &packet[..len], None);
        assert_eq!(cut, Err(Refusal::silent(DropReason::MalformedIn)), "{len} bytes");
    }
}

#[test]
fn a_packet_with_an_expired_ttl_is_refused() {
    for ttl in [0, 1] {
        let packet = Sample { ttl, ..Sample::default() }.udp();
        let refused = inbound(&routing([2]), host(2), &packet, None).unwrap_err();
        assert_eq!(refused.reason, DropReason::TimeExceeded);
    }
}

#[test]
fn a_burst_ends_with_a_shorter_packet_and_at_the_kernels_limit() {
    let plan = |sizes: &[usize]| {
        let mut outbox = Outbox::new();
        for size in sizes {
            push(&mut outbox, 0, &vec![0; *size]);
        }
        outbox.bursts().iter().map(|burst| (burst.segment, burst.packets)).collect::<Vec<_>>()
    };
    assert_eq!(plan(&[1472; 44]), [(1472, 44)]);
    assert_eq!(plan(&[1472; 45]), [(1472, 44), (1472, 1)], "65,507 bytes");
    assert_eq!(plan(&[92; 65]), [(92, 64), (92, 1)], "64 packets");
    assert_eq!(plan(&[1472, 1472, 500, 1472]), [(1472, 3), (1472, 1)]);
    assert_eq!(plan(&[500, 1472, 1472]), [(500, 1), (1472, 2)]);
}

#[test]
fn a_full_outbox_leaves_the_remaining_segments() {
    let mut outbox = Outbox::new();
    let packet = vec![0; 60_000];
    let taken = (0..10).filter(|_| push(&mut outbox, 0, &packet)).count();
    assert_eq!(taken, 4);
    assert!(outbox.is_worth_sending());
    outbox.clear();
    assert!(outbox.is_empty() && push(&mut outbox, 0, &packet));
}

fn push(outbox: &mut Outbox, hop: usize, packet: &[u8]) -> bool {
    let mut segments = Segments::new(&VirtioHeader::default(), packet).unwrap();
    outbox.push(hop, &mut segments);
    segments.left() == 0
}

#[test]
fn a_burst_that_can_grow_is_not_full() {
    let mut outbox = Outbox::new();
    let packets = |bursts: &[Burst]| bursts.iter().map(|burst| burst.packets).collect::<Vec<_>>();
    for (more, full) in [(46, 44), (46, 44), (40, 44)] {
        for _ in 0..more {
            assert!(push(&mut outbox, 0, &[0; 1472]));
        }
        assert_eq!(packets(outbox.full_bursts()), [full]);
        outbox.clear_full();
    }
    assert!(outbox.is_empty());
    assert!(push(&mut outbox, 0, &[0; 1472]) && push(&mut outbox, 0, &[0; 500]));
    assert_eq!(packets(outbox.full_bursts()), [2], "nothing follows a shorter packet");
    assert!(push(&mut outbox, 1, &[0; 1472]));
    assert_eq!(packets(outbox.full_bursts()), [2], "a burst to a different peer");
}

/// Returns the packets of some bursts, by peer.
fn take(outbox: &Outbox, bursts: &[Burst], sent: &mut [Vec<Vec<u8>>]) {
    for burst in bursts {
        assert!(burst.packets <= outbox.max_segments && burst.bytes <= 65_507);
        let packets: Vec<_> = outbox.packets(burst).map(<[u8]>::to_vec).collect();
        let (last, others) = packets.split_last().unwrap();
        assert!(others.iter().all(|packet| packet.len() == burst.segment) && last.len() <= burst.segment);
        assert_eq!(packets.len(), burst.packets);
        assert!(outbox.pieces(burst).count() <= MAX_SEGMENTS);
        sent[burst.hop].extend(packets);
    }
}

/// The most packets in a test: more than an outbox holds, and fewer under Miri, which is slow.
const MOST: usize = if cfg!(miri) { 20 } else { 400 };

proptest! {
    #[test]
    fn each_peer_gets_its_packets_once_and_in_order(
        packets in prop::collection::vec((0..4usize, prop::sample::select(vec![40usize, 64, 1400, 1472])), 0..MOST),
        max_segments in prop::sample::select(vec![1, 3, MAX_SEGMENTS]),
        sent_after in 1..200usize,
    ) {
        let mut outbox = Outbox::new();
        outbox.max_segments = max_segments;
        let (mut expected, mut sent) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
        for (number, (hop, size)) in packets.into_iter().enumerate() {
            let packet: Vec<u8> = (number..number + size).map(|byte| byte as u8).collect();
            if outbox.is_worth_sending() || number % sent_after == 0 {
                take(&outbox, outbox.full_bursts(), &mut sent);
                outbox.clear_full();
            }
            prop_assert!(push(&mut outbox, hop, &packet));
            expected[hop].push(packet);
        }
        take(&outbox, outbox.bursts(), &mut sent);
        prop_assert_eq!(sent, expected);
    }
}
