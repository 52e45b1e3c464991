//! Choosing a free subnet.
//!
//! The taken subnets are sorted once and then walked beside the candidates, so that the cost is that of the sort and
//! not the product of the two.

use ipnet::IpNet;

use crate::pool::{SubnetPool, bits, size};
use crate::{NetworkConfig, SubnetKey};

/// Chooses a subnet that shares no address with a taken one, at random among the first `width` free ones of each
/// family; `None` if a family has none left.
///
/// `pick` answers with a number below the one it is given. A wider choice makes it less likely that two hosts that
/// choose at the same moment choose the same.
pub fn choose(
    config: &NetworkConfig,
    taken: &[SubnetKey],
    width: usize,
    pick: &mut dyn FnMut(usize) -> usize,
) -> Option<SubnetKey> {
    let mut of = |pool: Option<SubnetPool>| pool.map(|pool| choose_from(&pool, taken, width, pick));
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
    width: usize,
    pick: &mut dyn FnMut(usize) -> usize,
) -> Option<IpNet> {
    let free: Vec<IpNet> = free(pool, taken).take(width).collect();
    if free.is_empty() { None } else { free.get(pick(free.len()).min(free.len() - 1)).copied() }
}

/// Walks over the subnets of a pool that share no address with a taken one.
fn free(pool: &SubnetPool, taken: &[SubnetKey]) -> impl Iterator<Item = IpNet> + use<> {
    let mut spans: Vec<(u128, u128)> = taken
        .iter()
        .flat_map(SubnetKey::nets)
        .filter(|net| net.max_prefix_len() == pool.network().max_prefix_len())
        .map(span)
        .collect();
    spans.sort_unstable();
    let mut spans = spans.into_iter().peekable();
    // Spans may nest, so the furthest end so far counts, not the end of the last one.
    let mut taken_up_to = None;
    pool.subnets().filter(move |subnet| {
        let (start, end) = span(*subnet);
        while let Some((_, taken_end)) = spans.next_if(|(taken_start, _)| *taken_start <= end) {
            taken_up_to = taken_up_to.max(Some(taken_end));
        }
        taken_up_to < Some(start)
    })
}

/// The first and the last address of a network, as numbers.
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

    #[test]
    fn the_choice_is_among_the_first_free_subnets() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let taken = keys(&["10.5.1.0-24", "10.5.3.0-24"]);
        let mut seen = None;
        let chosen = choose(&config, &taken, 100, &mut |n| {
            seen = Some(n);
            1
        });
        assert_eq!((chosen, seen), (Some("10.5.4.0-24".parse().unwrap()), Some(100)));
        assert_eq!(choose(&config, &taken, 1, &mut |_| 0), Some("10.5.2.0-24".parse().unwrap()));
    }

    #[test]
    fn leases_of_other_sizes_count_for_all_they_cover() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let taken = keys(&["10.5.0.0-22", "10.5.4.128-25", "10.5.5.0-30", "10.5.0.0-21"]);
        assert_eq!(choose(&config, &taken, 1, &mut |_| 0), Some("10.5.8.0-24".parse().unwrap()));
    }

    #[test]
    fn a_full_pool_has_nothing_to_give_in_either_family() {
        let single = config(r#"{"Network":"10.5.0.0/28"}"#);
        let taken = keys(&["10.5.0.4-30", "10.5.0.8-30", "10.5.0.12-30"]);
        assert_eq!(choose(&single, &taken, 100, &mut |_| 0), None);
        let dual = config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/124"}"#);
        let taken = keys(&["0.0.0.0-0&fc00::-125", "0.0.0.0-0&fc00::8-125"]);
        assert_eq!(choose(&dual, &taken, 100, &mut |_| 0), None);
        assert_eq!(choose(&dual, &[], 100, &mut |_| 0), Some("10.5.1.0-24&fc00::4-126".parse().unwrap()));
    }

    proptest! {
        /// The slow and obvious way: compare every candidate with every lease.
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
