//! How long the host has been suspended.
#![allow(unsafe_code, reason = "the only module of the crate that calls the C library")]

use std::time::Duration;

/// Returns the total time that the host has been suspended since boot: `CLOCK_BOOTTIME` counts suspend and
/// `CLOCK_MONOTONIC` does not (clock_gettime(2)). The result is off by the time between the two reads.
pub(crate) fn total_suspended() -> Duration {
    let monotonic = clock(libc::CLOCK_MONOTONIC);
    clock(libc::CLOCK_BOOTTIME).saturating_sub(monotonic)
}

/// Reads a clock. Every Linux has both clocks, so the call cannot fail; zero if it does.
fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writes and outlives the call.
    unsafe { libc::clock_gettime(id, &mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
