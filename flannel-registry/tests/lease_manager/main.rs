//! A lease manager over a registry. The clock is paused, so days pass at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail in its helpers too")]

mod acquire;
mod contract;
mod contract_is_honest;
mod identity;
mod keep;
mod log;
#[path = "../common/memory.rs"]
mod memory;
mod peers;
mod reservations;
mod site;
mod suspend;
