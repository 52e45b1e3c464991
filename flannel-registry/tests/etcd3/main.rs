//! The registry in etcd v3, on a real etcd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod audit;
mod auth;
mod behind;
#[path = "../common/mod.rs"]
mod common;
mod contract;
mod members;
mod pitfalls;
mod records;
mod release;
mod scale;
mod server;
mod three_members;
mod tls;
mod upstream_defects;
mod watch;
