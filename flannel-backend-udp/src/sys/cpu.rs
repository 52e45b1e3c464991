//! Sums with the processor's widest vectors: the portable code, compiled again for them.

use crate::packet::checksum::{copy_and_sum_portably, sum_portably, sum_words};

/// Below this size, which is that of headers, calling the vector code costs more than it saves.
const SHORT: usize = 64;

/// Sums 32-bit words in native byte order.
#[inline]
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    if bytes.len() < SHORT {
        return sum_words(bytes);
    }
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature check above guarantees these instructions.
        return unsafe { sum_avx2(bytes) };
    }
    sum_portably(bytes)
}

/// Copies and sums 32-bit words in native byte order.
#[inline]
pub(crate) fn copy_and_sum(to: &mut [u8], from: &[u8]) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the feature check above guarantees these instructions.
        return unsafe { copy_and_sum_avx2(to, from) };
    }
    copy_and_sum_portably(to, from)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    sum_portably(bytes)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
fn copy_and_sum_avx2(to: &mut [u8], from: &[u8]) -> u64 {
    copy_and_sum_portably(to, from)
}
