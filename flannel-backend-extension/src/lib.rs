//! The backends of flannel that carry no traffic themselves.
//!
//! With `extension` ([`OpenExtension`]) commands of the operator's do: one when the host starts, one when it has its
//! subnet, one for each peer that comes and one for each that goes. With `alloc` ([`OpenAlloc`]) subnets are leased and
//! nothing else is done.
//!
//! # Which processes it starts
//!
//! `/bin/sh -c COMMAND` for each command of the configuration, one at a time, and what that starts. Nothing else.
//!
//! # Whose object is it?
//!
//! What commands make is the operator's. Nothing on the host is looked at.

mod alloc;
mod config;
mod extension;
mod ledger;
mod shell;
mod sys;
mod worker;

pub use alloc::OpenAlloc;
pub use extension::OpenExtension;
