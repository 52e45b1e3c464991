//! What the packet path reads from its device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flannel_backend_udp::fuzzing::outward(bytes));
