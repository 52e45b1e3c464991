//! The choice of a free subnet.
//!
//! Hosts that start at the same time see the same list. To avoid races, each first tries a subnet derived from its public
//! address: hosts in the same block of 256 addresses never collide, and hosts of different blocks collide at random.
//!
//! The taken subnets are sorted once and merged with the candidates, so the cost is that of the sort.

use ipnet::IpNet;

use crate::config::NetworkConfig;
use crate::lease::PublicAddrs;
use crate::pool::{SubnetPool, bits, size};
use crate::subnet::SubnetKey;

/// The number of free subnets for a random choice: far more than hosts that lose a race at the same time, and few enough to
/// list in well under a millisecond.
const WIDTH: usize = 4096;

/// Chooses a subnet that overlaps no taken one: in each family the one derived from the host's address if it is free, else a
/// random one of the first 4096 free ones; `None` if a family has no free subnet.
///
/// Without an address the choice is random. `pick` returns a number below its argument.
pub fn choose(
    config: &NetworkConfig,
    taken: &[SubnetKey],
    host: Option<PublicAddrs>,
    pick: &mut dyn FnMut(usize) -> usize,
) -> Option<SubnetKey> {
    let place = host.and_then(place);
    let mut of = |pool: Option<SubnetPool>| pool.map(|pool| choose_from(&pool, taken, place, pick));
    let v4 = match of(config.ipv4) {
        Some(None) => return None,
        Some(Some(IpNet::V4(net))) => Some(net),
        Some(Some(IpNet::V6(_))) | None => None,
    };
    let v6 = match of(config.ipv6) {
        Some(None) => return None,
        Some(Some(IpNet::V6(net))) => Some(net),
        Some(Some(IpNet::V4(_))) | None => None,
    };
    SubnetKey::new(v4, v6)
}

fn choose_from(
    pool: &SubnetPool,
    taken: &[SubnetKey],
    place: Option<u128>,
    pick: &mut dyn FnMut(usize) -> usize,
) -> Option<IpNet> {
    let is_free = |net: &IpNet| !taken.iter().flat_map(SubnetKey::nets).any(|other| overlap(net, &other));
    if let Some(own) = place.map(|place| pool.at(place)).filter(is_free) {
        return Some(own);
    }
    let free: Vec<IpNet> = free(pool, taken).take(WIDTH).collect();
    if free.is_empty() { None } else { free.get(pick(free.len()).min(free.len() - 1)).copied() }
}

/// Derives a number from a host's address. Inside a block of 256 addresses it is consecutive; the start of a block is hashed,
/// because sites tend to number the hosts of each rack alike.
fn place(host: PublicAddrs) -> Option<u128> {
    let address = host.v4.map(|v4| bits(v4.into())).or_else(|| host.v6.map(|v6| bits(v6.into())))?;
    let (block, last) = (address >> 8, address & 0xff);
    // Less than 2^65, so the sum can't overflow.
    Some(u128::from(scatter(block)) + last)
}

/// Hashes a number (the finalizer of SplitMix64).
fn scatter(number: u128) -> u64 {
    #[allow(clippy::cast_possible_truncation, reason = "both halves are combined")]
    let mut z = (number as u64) ^ ((number >> 64) as u64).rotate_left(32);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Iterates over the subnets of a pool that overlap no taken one.
fn free(pool: &SubnetPool, taken: &[SubnetKey]) -> impl Iterator<Item = IpNet> + use<> {
    let mut spans: Vec<(u128, u128)> = taken
        .iter()
        .flat_map(SubnetKey::nets)
        .filter(|net| net.max_prefix_len() == pool.network().max_prefix_len())
        .map(span)
        .collect();
    spans.sort_unstable();
    let mut spans = spans.into_iter().peekable();
    // Spans may nest, so the largest end so far counts.
    let mut taken_up_to = None;
    pool.subnets().filter(move |subnet| {
        let (start, end) = span(*subnet);
        while let Some((_, taken_end)) = spans.next_if(|(taken_start, _)| *taken_start <= end) {
            taken_up_to = taken_up_to.max(Some(taken_end));
        }
        taken_up_to < Some(start)
    })
}

/// Returns the first and the last address of a network as numbers.
fn span(net: IpNet) -> (u128, u128) {
    let start = bits(net.network());
    (start, start.saturating_add(size(net) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).unwrap()
    }

    fn keys(texts: &[&str]) -> Vec<SubnetKey> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn at(address: [u8; 4]) -> Option<PublicAddrs> {
        Some(std::net::Ipv4Addr::from(address).into())
    }

    #[test]
    fn without_an_address_the_choice_is_among_all_free_subnets() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let taken = keys(&["10.5.1.0-24", "10.5.3.0-24"]);
        let mut seen = None;
        let chosen = choose(&config, &taken, None, &mut |n| {
            seen = Some(n);
            1
        });
        assert_eq!((chosen, seen), (Some("10.5.4.0-24".parse().unwrap()), Some(253)));
        assert_eq!(choose(&config, &taken, None, &mut |_| 0), Some("10.5.2.0-24".parse().unwrap()));
    }

    #[test]
    fn hosts_of_one_block_choose_different_subnets() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let chosen: std::collections::BTreeSet<_> = (0..255)
            .filter_map(|last| choose(&config, &[], at([192, 168, 7, last]), &mut |_| panic!("not random")))
            .collect();
        assert_eq!(chosen.len(), 255);
    }

    #[test]
    fn hosts_that_are_numbered_alike_in_many_racks_rarely_collide() {
        let config = config(r#"{"Network":"10.0.0.0/12"}"#);
        let chosen: std::collections::BTreeSet<_> = (0..20)
            .flat_map(|rack| (10..40).map(move |last| [172, 16, rack, last]))
            .filter_map(|address| choose(&config, &[], at(address), &mut |_| panic!("not random")))
            .collect();
        // 600 of 4095 subnets: 44 collisions are expected.
        assert!(chosen.len() > 500, "{}", chosen.len());
    }

    #[test]
    fn a_taken_subnet_is_not_chosen() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let me = at([192, 168, 7, 1]);
        let first = choose(&config, &[], me, &mut |_| panic!("not random")).unwrap();
        let other = choose(&config, &[first], me, &mut |n| n - 1).unwrap();
        assert!(!other.overlaps(&first));
    }

    #[test]
    fn leases_of_other_lengths_take_all_overlapping_subnets() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let taken = keys(&["10.5.0.0-22", "10.5.4.128-25", "10.5.5.0-30", "10.5.0.0-21"]);
        assert_eq!(choose(&config, &taken, None, &mut |_| 0), Some("10.5.8.0-24".parse().unwrap()));
    }

    #[test]
    fn a_full_pool_of_either_family_has_no_choice() {
        let single = config(r#"{"Network":"10.5.0.0/28"}"#);
        let taken = keys(&["10.5.0.4-30", "10.5.0.8-30", "10.5.0.12-30"]);
        assert_eq!(choose(&single, &taken, None, &mut |_| 0), None);
        let dual = config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/124"}"#);
        let taken = keys(&["0.0.0.0-0&fc00::-125", "0.0.0.0-0&fc00::8-125"]);
        assert_eq!(choose(&dual, &taken, None, &mut |_| 0), None);
        assert_eq!(choose(&dual, &[], None, &mut |_| 0), Some("10.5.1.0-24&fc00::4-126".parse().unwrap()));
    }

    proptest! {
        /// Compares each candidate with each lease.
        #[test]
        fn the_free_subnets_are_those_that_overlap_nothing(taken: Vec<(u8, u8)>) {
            let config = config(r#"{"Network":"10.5.0.0/20","SubnetLen":26}"#);
            let pool = config.ipv4.unwrap();
            let taken: Vec<SubnetKey> = taken
                .into_iter()
                .map(|(third, len)| {
                    let address = std::net::Ipv4Addr::new(10, 5, third % 16, third);
                    ipnet::Ipv4Net::new(address, 20 + len % 11).unwrap().trunc().into()
                })
                .collect();
            let slow: Vec<IpNet> = pool
                .subnets()
                .filter(|net| taken.iter().flat_map(SubnetKey::nets).all(|t| !t.contains(net) && !net.contains(&t)))
                .collect();
            prop_assert_eq!(free(&pool, &taken).collect::<Vec<_>>(), slow);
        }
    }
}
