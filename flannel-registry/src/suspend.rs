//! The system calls that the standard library does not offer, each as a safe function.
#![allow(unsafe_code, reason = "the only module of the crate that speaks to the C library")]

use std::time::Duration;

/// How long the host has been suspended since it was started: `CLOCK_BOOTTIME` goes on meanwhile and `CLOCK_MONOTONIC`
/// does not (clock_gettime(2)). The two are read one after the other, so the answer is late by as much as that takes.
pub(crate) fn asleep() -> Duration {
    let on = clock(libc::CLOCK_MONOTONIC);
    clock(libc::CLOCK_BOOTTIME).saturating_sub(on)
}

/// Reads a clock that every Linux has; so it cannot fail, and would stand still if it did.
fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer, and outlives the call.
    unsafe { libc::clock_gettime(id, &mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
