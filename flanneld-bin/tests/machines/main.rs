//! Machines with systemd: the installed files of `dist/`, and the commands of the pages.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod machine;
mod package;
mod page;
mod units;
mod walkthroughs;
#[path = "../daemon/wildcard.rs"]
mod wildcard;
