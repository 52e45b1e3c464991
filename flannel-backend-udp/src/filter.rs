//! A socket filter that drops datagrams from strangers in the kernel, before they use buffer space or processor time of
//! the packet path (classic BPF, `Documentation/networking/filter.rst`).
//!
//! The kernel limits the length of a program. With many scattered peers the filter therefore accepts ranges that cover the
//! closest addresses; the packet path checks every datagram exactly.

use std::net::IpAddr;

use crate::sys::socket::FilterInstruction;

/// The most ranges: each takes six of 4096 instructions (`BPF_MAXINSNS`, `linux/bpf_common.h`).
const MAX_RANGES: usize = 600;

// `linux/bpf_common.h`, `linux/filter.h`.
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_GREATER: u16 = 0x25;
const JUMP_IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;
/// The base of offsets from the network header (`SKF_NET_OFF`).
const NETWORK_HEADER: u32 = -0x10_0000_i32 as u32;

const ACCEPT: FilterInstruction = instruction(RETURN, u32::MAX);
const DROP: FilterInstruction = instruction(RETURN, 0);

/// Builds the filter for a socket of one address family: it accepts datagrams from these addresses.
///
/// It compares the last 32 bits of IPv6 addresses.
pub(crate) fn program(is_v6: bool, peers: impl Iterator<Item = IpAddr>) -> Vec<FilterInstruction> {
    let mut numbers: Vec<u32> = peers
        .filter_map(|peer| match peer {
            IpAddr::V4(v4) if !is_v6 => Some(v4.to_bits()),
            IpAddr::V6(v6) if is_v6 => Some(v6.to_bits() as u32),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let source = if is_v6 { 8 + 12 } else { 12 };
    let mut program = vec![instruction(LOAD_WORD, NETWORK_HEADER + source)];
    search(&ranges(&numbers), &mut program);
    program
}

/// Covers sorted numbers by at most [`MAX_RANGES`] ranges that contain as few other numbers as possible.
fn ranges(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut gaps: Vec<u32> = numbers.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    // Only larger gaps separate ranges.
    let joined = gaps.get(MAX_RANGES - 1).copied().unwrap_or(1);
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number - *last <= joined => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    ranges
}

/// Emits a binary search.
fn search(ranges: &[(u32, u32)], program: &mut Vec<FilterInstruction>) {
    match ranges {
        [] => program.push(DROP),
        [(first, last)] => program.extend([
            jump(JUMP_IF_NOT_LESS, *first, 0, 2),
            jump(JUMP_IF_GREATER, *last, 1, 0),
            ACCEPT,
            DROP,
        ]),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let mut above = Vec::new();
            search(upper, &mut above);
            program.push(jump(JUMP_IF_NOT_LESS, upper[0].0, 1, 0));
            program.push(instruction(JUMP, above.len() as u32));
            program.append(&mut above);
            search(lower, program);
        }
    }
}

const fn instruction(code: u16, k: u32) -> FilterInstruction {
    FilterInstruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> FilterInstruction {
    FilterInstruction { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    /// Interprets a program like the kernel, for a packet from `address`.
    fn accepts(program: &[FilterInstruction], address: u32) -> bool {
        let (mut at, mut a) = (0, 0);
        loop {
            let FilterInstruction { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD_WORD => a = address,
                JUMP => at += k as usize,
                JUMP_IF_GREATER => at += usize::from(if a > k { jt } else { jf }),
                JUMP_IF_NOT_LESS => at += usize::from(if a >= k { jt } else { jf }),
                RETURN => return k != 0,
                _ => panic!("no such instruction: {code:#x}"),
            }
        }
    }

    fn of(peers: impl IntoIterator<Item = u32>) -> Vec<FilterInstruction> {
        program(false, peers.into_iter().map(|peer| IpAddr::V4(Ipv4Addr::from_bits(peer))))
    }

    proptest! {
        #[test]
        fn only_peers_are_accepted(peers in prop::collection::btree_set(0..2000u32, 0..400), address in 0..2100u32) {
            let program = of(peers.iter().copied());
            prop_assert_eq!(accepts(&program, address), peers.contains(&address));
        }
    }

    #[test]
    fn more_peers_than_a_program_can_list_are_all_accepted() {
        let peers: BTreeSet<u32> = (0..50_000u32).map(|n| n.wrapping_mul(2_654_435_761)).collect();
        let program = of(peers.iter().copied());
        assert!(program.len() <= 4096, "{}", program.len());
        assert!(peers.iter().all(|peer| accepts(&program, *peer)));
    }

    #[test]
    fn consecutive_addresses_take_one_range() {
        let program = of(0x0a00_0001..0x0a00_ffff);
        assert!(program.len() < 10);
        assert!(!accepts(&program, 0x0a00_0000) && !accepts(&program, 0x0a00_ffff));
    }

    #[test]
    fn without_peers_nothing_is_accepted() {
        assert!(!accepts(&of([]), 0));
        assert!(!accepts(&program(true, std::iter::once(IpAddr::from([1, 2, 3, 4]))), 0));
    }
}
