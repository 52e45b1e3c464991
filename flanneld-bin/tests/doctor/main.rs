//! `flanneld doctor`: each test makes a fault in a lab, finds it, runs the printed cure, and finds it gone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../daemon/certificates.rs"]
#[allow(dead_code, reason = "the tests of the daemon use the rest")]
mod certificates;
#[path = "../daemon/cluster.rs"]
#[allow(dead_code, reason = "the tests of the daemon use the rest")]
mod cluster;

mod addresses;
mod daemons;
mod firewall;
mod forwarding;
mod healthy;
mod host;
mod leases;
mod managers;
mod mtu;
mod objects;
mod overlap;
mod registry;
mod site;
