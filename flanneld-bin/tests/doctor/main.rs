//! Doctor: each fault is made in a lab, seen by its name, cured by the commands that are printed, and gone.
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
