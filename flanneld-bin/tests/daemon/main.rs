//! The whole daemon: hosts as namespaces, a real etcd, real traffic.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cluster;
mod direct;
mod failing;
mod identity;
mod interfaces;
mod living;
mod migrate;
mod moved;
mod outage;
mod release;
mod secured;
