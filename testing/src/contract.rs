//! What every implementation of a seam must keep, as tests that any of them can run.

pub mod backend;
pub mod manager;
pub mod registry;
pub mod table;

use std::net::Ipv4Addr;
use std::time::Duration;

use flannel_core::{LeaseAttrs, SubnetKey};

/// So long that no lease of it ends during a check.
const DAY: Duration = Duration::from_secs(86_400);

/// The subnet of host number `n`.
fn subnet(n: u8) -> SubnetKey {
    format!("10.5.{n}.0-24").parse().expect("is a subnet key")
}

/// What host number `n` says about itself.
fn host(n: u8) -> LeaseAttrs {
    LeaseAttrs::new(Ipv4Addr::new(192, 168, 0, n).into())
}
