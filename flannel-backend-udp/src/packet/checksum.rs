//! The internet checksum (RFC 1071), and a copy that computes it in the same pass.
//!
//! Words are summed in native byte order and swapped once at the end, which gives the same checksum on every machine
//! (RFC 1071, section 2 (B)).

use crate::sys::cpu;

/// An unfolded ones' complement sum of 16-bit words.
///
/// Parts may be added in any order if each has an even length or is the last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Sums bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(cpu::sum(bytes))
    }

    /// Copies and sums bytes. Both slices must have the same length.
    pub(crate) fn copy(to: &mut [u8], from: &[u8]) -> Self {
        Self(cpu::copy_and_sum(to, from))
    }

    /// Adds another sum.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        // Both are below 2^48: a packet has fewer than 2^16 32-bit words.
        Self(self.0 + other.0)
    }

    /// Adds a word.
    #[must_use]
    pub(crate) fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// Adds two words, the upper one first.
    #[must_use]
    pub(crate) fn double(self, double: u32) -> Self {
        Self(self.0 + u64::from(double.to_be()))
    }

    /// Folds the sum to 16 bits.
    pub(crate) fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        u16::from_be(sum as u16)
    }

    /// Returns the checksum: the complement of the folded sum.
    pub(crate) fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Sums 32-bit words, 64 bytes at a time so that compilers emit vector instructions.
#[inline(always)]
pub(crate) fn sum_portably(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; LANES];
    let mut blocks = bytes.chunks_exact(BLOCK);
    for block in &mut blocks {
        add_block(&mut lanes, block);
    }
    lanes.iter().sum::<u64>() + sum_words(blocks.remainder())
}

/// Copies and sums in one pass.
#[inline(always)]
pub(crate) fn copy_and_sum_portably(to: &mut [u8], from: &[u8]) -> u64 {
    debug_assert_eq!(to.len(), from.len(), "the slices differ in length");
    let mut lanes = [0u64; LANES];
    let (mut targets, mut blocks) = (to.chunks_exact_mut(BLOCK), from.chunks_exact(BLOCK));
    for (target, block) in (&mut targets).zip(&mut blocks) {
        target.copy_from_slice(block);
        add_block(&mut lanes, block);
    }
    let rest = blocks.remainder();
    let target = targets.into_remainder();
    let len = rest.len().min(target.len());
    target[..len].copy_from_slice(&rest[..len]);
    lanes.iter().sum::<u64>() + sum_words(rest)
}

const BLOCK: usize = 64;
const LANES: usize = BLOCK / 8;

#[inline(always)]
fn add_block(lanes: &mut [u64; LANES], block: &[u8]) {
    for (lane, eight) in lanes.iter_mut().zip(block.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(eight);
        let word = u64::from_ne_bytes(word);
        *lane += (word & 0xffff_ffff) + (word >> 32);
    }
}

/// Sums word by word.
#[inline(always)]
pub(crate) fn sum_words(bytes: &[u8]) -> u64 {
    let mut sum = 0;
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    }
    // An odd last byte is padded with zero (RFC 1071, section 4.1).
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    sum + u64::from(u32::from_ne_bytes(last))
}

/// Returns the header checksum after the TTL is decremented, by incremental update and without verifying the old one
/// (RFC 1624, equation 3).
pub(crate) fn after_ttl_decrement(checksum: u16) -> u16 {
    let (sum, carry) = checksum.overflowing_add(0x0100);
    match sum.wrapping_add(u16::from(carry)) {
        // Never 0xffff, the other representation of zero (RFC 1624, section 3).
        0xffff => 0,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The reference: RFC 1071, section 1, word by word.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Maps both representations of zero to one.
    fn number(sum: u16) -> u16 {
        if sum == 0xffff { 0 } else { sum }
    }

    proptest! {
        #[test]
        fn a_sum_equals_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            prop_assert_eq!(number(Sum::of(&bytes).fold()), number(slow(&bytes)));
            prop_assert_eq!(number(Sum(sum_portably(&bytes)).fold()), number(slow(&bytes)));
        }

        #[test]
        fn a_copy_equals_the_original_and_its_sum_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut to = vec![0; bytes.len()];
            prop_assert_eq!(number(Sum::copy(&mut to, &bytes).fold()), number(slow(&bytes)));
            prop_assert_eq!(&to, &bytes);
            to.fill(0);
            prop_assert_eq!(number(Sum(copy_and_sum_portably(&mut to, &bytes)).fold()), number(slow(&bytes)));
            prop_assert_eq!(&to, &bytes);
        }

        #[test]
        fn words_and_parts_add_up(a in any::<u16>(), b in any::<u32>(), rest in prop::collection::vec(any::<u8>(), 0..99)) {
            let sum = Sum::default().word(a).double(b).and(Sum::of(&rest));
            let all: Vec<u8> = [&a.to_be_bytes()[..], &b.to_be_bytes(), &rest].concat();
            prop_assert_eq!(number(sum.fold()), number(slow(&all)));
        }

        #[test]
        fn an_incremental_update_equals_a_new_checksum(mut header in prop::array::uniform20(any::<u8>()), ttl in 1..=255u8) {
            header[8] = ttl;
            header[10..12].fill(0);
            let checksum = Sum::of(&header).checksum();
            header[8] -= 1;
            prop_assert_eq!(number(after_ttl_decrement(checksum)), number(Sum::of(&header).checksum()));
        }
    }

    #[test]
    fn an_incremental_update_equals_upstreams() {
        for (before, after) in [(0x1234, 0x1334), (0xff10, 0x0011), (0xfeff, 0x0000), (0xffff, 0x0100)] {
            assert_eq!(after_ttl_decrement(before), after, "{before:#06x}");
        }
    }

    #[test]
    fn the_largest_packet_does_not_overflow() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(number(Sum::of(&bytes).fold()), number(slow(&bytes)));
    }
}
