//! A cached lease manager over a registry in memory that fails on demand, with a paused clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod contract;
mod file;
#[path = "../common/memory.rs"]
mod memory;
mod network;
mod promises;
mod site;
