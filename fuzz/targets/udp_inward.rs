//! What the packet path receives from the network.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flannel_backend_udp::fuzzing::inward(bytes));
