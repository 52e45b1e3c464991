//! Networks from config to shutdown, on a registry in memory and hosts without a kernel. The clock is paused, so days
//! pass at once.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail in its helpers too"
)]

mod config;
mod ending;
mod external;
mod handles;
mod lease;
mod peers;
mod site;
mod starting;
mod status;
