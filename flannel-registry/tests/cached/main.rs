//! A manager that remembers, on a registry in memory that fails on demand, with the clock paused.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod file;
mod network;
mod promises;
mod site;
