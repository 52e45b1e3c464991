//! Reproducible pseudo-random bytes for both ends of a connection, and a checksum over them.

/// Source of pseudo-random bytes; equal seeds give equal bytes (xorshift64*, Vigna 2014).
pub(super) struct Pattern(u64);

impl Pattern {
    pub(super) fn new(seed: u64) -> Self {
        // The generator has a fixed point at zero, and similar seeds must not give similar beginnings.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Fills `block` with the next bytes. A block whose length is no multiple of 8 ends the sequence.
    pub(super) fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// A checksum that detects changed, lost, repeated and swapped bytes. It is fast, and not cryptographic.
#[derive(Default)]
pub(super) struct Checksum(u64);

impl Checksum {
    /// Adds the next bytes. A block whose length is not a multiple of 8 ends the sequence.
    pub(super) fn update(&mut self, block: &[u8]) {
        for chunk in block.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            // An odd multiplier and a rotation are both invertible, so no state is lost.
            let mixed = self.0 ^ u64::from_le_bytes(word);
            self.0 =
                mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_add(chunk.len() as u64);
        }
    }

    pub(super) fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut block = vec![0; length];
        Pattern::new(seed).fill(&mut block);
        block
    }

    fn checksum(bytes: &[u8]) -> u64 {
        let mut checksum = Checksum::default();
        checksum.update(bytes);
        checksum.value()
    }

    #[test]
    fn block_boundaries_change_neither_bytes_nor_checksum() {
        let whole = bytes(7, 1003);
        let (mut pattern, mut sum) = (Pattern::new(7), Checksum::default());
        let mut parts = vec![0; 1003];
        for block in parts.chunks_mut(64) {
            pattern.fill(block);
            sum.update(block);
        }
        assert_eq!(parts, whole);
        assert_eq!(sum.value(), checksum(&whole));
        assert_ne!(bytes(8, 1003), whole);
    }

    #[test]
    fn every_kind_of_damage_changes_the_checksum() {
        let whole = bytes(1, 512);
        let mut flipped = whole.clone();
        flipped[100] ^= 0x10;
        let mut swapped = whole.clone();
        swapped.swap(8, 16);
        let repeated = [&whole[..8], &whole[..]].concat();
        let padded = [&whole[..], &[0]].concat();
        for damaged in [&flipped[..], &swapped, &repeated, &padded, &whole[..511]] {
            assert_ne!(checksum(damaged), checksum(&whole));
        }
    }
}
