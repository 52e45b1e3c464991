//! The peer table against a linear search, and its replacement.

use super::*;
use proptest::prelude::*;

fn hop(subnet: IpNet) -> Hop {
    let address = SocketAddr::from(([192, 168, 64, 2], 8285));
    Hop { subnet, address, counters: Arc::default() }
}

/// Finds the longest prefix by linear search; of equal ones the first.
fn slow(hops: &[Hop], address: IpAddr) -> Option<usize> {
    let around = (0..hops.len()).filter(|at| hops[*at].subnet.contains(&address));
    around.rev().max_by_key(|at| hops[*at].subnet.prefix_len())
}

fn v4() -> impl Strategy<Value = IpNet> {
    (0..64u32, 26..=32u8).prop_map(|(host, len)| {
        IpNet::new(Ipv4Addr::from_bits(0x0a05_0000 + host).into(), len).unwrap().trunc()
    })
}

fn v6() -> impl Strategy<Value = IpNet> {
    (0..64u128, 122..=128u8).prop_map(|(host, len)| {
        IpNet::new(Ipv6Addr::from_bits((0xfd << 120) + host).into(), len).unwrap().trunc()
    })
}

proptest! {
    #[test]
    fn the_longest_prefix_is_found(nets in prop::collection::vec(prop_oneof![v4(), v6()], 0..40)) {
        let hops: Vec<Hop> = nets.into_iter().map(hop).collect();
        let table = PeerTable::new(hops.clone());
        for host in 0..66u32 {
            let address = IpAddr::from(Ipv4Addr::from_bits(0x0a04_ffff + host));
            prop_assert_eq!(table.lookup(address), slow(&hops, address), "{}", address);
            let address = IpAddr::from(Ipv6Addr::from_bits((0xfd << 120) - 1 + u128::from(host)));
            prop_assert_eq!(table.lookup(address), slow(&hops, address), "{}", address);
        }
    }
}

#[test]
fn subnets_at_the_ends_of_the_address_space_are_found() {
    let nets = ["0.0.0.0/8", "255.255.255.0/24", "::/16", "ffff::/16", "255.255.255.255/32"];
    let hops: Vec<Hop> = nets.iter().map(|net| hop(net.parse().unwrap())).collect();
    let table = PeerTable::new(hops);
    let found = |address: &str| table.lookup(address.parse().unwrap());
    assert_eq!((found("0.0.0.0"), found("1.0.0.0")), (Some(0), None));
    assert_eq!((found("255.255.255.254"), found("255.255.255.255")), (Some(1), Some(4)));
    assert_eq!((found("::"), found("ffff:ffff::1"), found("1::")), (Some(2), Some(3), None));
}

#[test]
fn a_refresh_loads_the_new_table() {
    let exchange = Arc::new(SharedRouting::default());
    let mut view = CachedRouting::new(Arc::clone(&exchange));
    let peers = PeerTable::new(vec![hop("10.5.2.0/24".parse().unwrap())]);
    exchange.replace(Routing { peers, ..Routing::default() });
    assert_eq!(view.routing().peers.hops().len(), 0, "a view keeps its table until the next refresh");
    view.refresh();
    assert_eq!(view.routing().peers.hops().len(), 1);
    assert!(view.routing().peers.by_public([192, 168, 64, 2].into()).is_some());
    assert!(view.routing().peers.by_public([192, 168, 64, 3].into()).is_none());
}
