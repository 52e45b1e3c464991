//! Fuzzes the packet path from the device to the network.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flannel_backend_udp::fuzzing::outward(bytes));
