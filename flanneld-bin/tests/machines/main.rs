//! Whole machines: a systemd, the files of `dist/` in their places, and the commands of the pages as an operator types them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;
mod package;
mod page;
mod units;
mod walkthroughs;
#[path = "../daemon/wildcard.rs"]
mod wildcard;
