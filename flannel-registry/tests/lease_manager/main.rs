//! A host's lease over a registry: getting it, keeping it, losing it. The clock is paused, so days pass at once.

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
