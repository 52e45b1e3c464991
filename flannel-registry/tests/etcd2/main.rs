//! The registry in etcd v2, on a real etcd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod behind;
#[path = "../common/mod.rs"]
mod common;
mod contract;
mod fake;
mod members;
mod records;
mod scale;
mod security;
mod server;
mod watch;
