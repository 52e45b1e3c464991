//! The registry in etcd v3, on a real etcd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod contract;
mod members;
mod records;
mod server;
mod watch;
