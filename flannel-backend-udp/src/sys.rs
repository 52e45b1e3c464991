//! What the standard library does not offer, each as a safe function: types in, [`io::Result`](std::io::Result) out, no
//! policy.
#![allow(
    unsafe_code,
    reason = "the only module of the crate that speaks to the C library and to the processor"
)]

pub(crate) mod cpu;
pub(crate) mod poll;
pub(crate) mod priority;
pub(crate) mod socket;
pub(crate) mod tun;
