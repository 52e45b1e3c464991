//! A manager that remembers, on a registry in memory that fails on demand, with the clock paused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod contract;
mod file;
#[path = "../common/memory.rs"]
mod memory;
mod network;
mod promises;
mod site;
