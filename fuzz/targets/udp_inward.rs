//! Fuzzes the packet path from the network to the device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flannel_backend_udp::fuzzing::inward(bytes));
