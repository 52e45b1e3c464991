//! flannel's `extension` and `alloc` backends, which move no packets themselves.
//!
//! `extension` ([`OpenExtension`]) runs the operator's commands: one when the host starts, one when it has its subnet, one
//! for each peer that joins and one for each that leaves. `alloc` ([`OpenAlloc`]) leases a subnet and does nothing else.
//!
//! # Processes
//!
//! The extension backend runs `/bin/sh -c COMMAND` for each configured command, one at a time, and starts no other process.
//!
//! # Object ownership
//!
//! Everything that a command creates belongs to the operator. The backends read no kernel state.

mod alloc;
mod config;
mod extension;
mod ledger;
mod shell;
mod sys;
mod worker;

pub use alloc::OpenAlloc;
pub use extension::OpenExtension;
