//! The registry in etcd v3, on a real etcd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod contract;
mod members;
mod proxy;
mod records;
mod server;
mod watch;
