//! The checks: functions that derive findings from facts. [`CHECKS`] lists them.

use super::facts::Facts;
use super::finding::Fault;
use super::finding::Finding;

mod addresses;
mod certificates;
mod daemons;
mod firewall;
mod forwarding;
mod host;
mod leases;
mod managers;
mod mtu;
mod objects;
mod overlap;
mod registry;

/// Every kind of fault, in the order of the checks and of `docs/doctor.md`.
pub const FAULTS: &[&Fault] = &[
    &host::CAPABILITIES,
    &host::NOT_ROOT,
    &host::KERNEL_VXLAN,
    &host::TUN_DEVICE,
    &host::KERNEL_NFTABLES,
    &host::FIREWALL_PROGRAM,
    &host::CHECKSUM_OFFLOAD,
    &host::PORT_TAKEN,
    &host::TUNNEL_TAKEN,
    &daemons::NOT_RUNNING,
    &daemons::OTHER_DAEMON,
    &registry::OPTIONS,
    &registry::UNREACHABLE,
    &registry::REFUSES,
    &registry::CONFIG_MISSING,
    &registry::CONFIG_INVALID,
    &registry::BAD_RECORD,
    &registry::CLOCK,
    &certificates::EXPIRED,
    &certificates::NOT_YET_VALID,
    &certificates::EXPIRES_SOON,
    &addresses::INTERFACE,
    &addresses::PUBLIC_ADDRESS,
    &addresses::SHARED,
    &leases::EXPIRED,
    &leases::TAKEN,
    &leases::OVERLAP,
    &leases::UNREACHABLE_HOST,
    &leases::NO_ROUTE,
    &overlap::UNDERLAY,
    &overlap::ADDRESS,
    &overlap::ROUTE,
    &forwarding::OFF,
    &forwarding::OFF_ON_DEVICE,
    &forwarding::STRICT,
    &forwarding::STRICT_BELOW,
    &forwarding::BRIDGE,
    &objects::MISSING,
    &objects::STALE,
    &objects::PEER,
    &mtu::DEVICE,
    &mtu::BRIDGE,
    &mtu::SUBNET_FILE,
    &firewall::TUNNEL,
    &firewall::FORWARD,
    &firewall::RULES,
    &firewall::NOT_SHOWN,
    &firewall::UNREADABLE,
    &managers::NETWORKD,
    &managers::NETWORK_MANAGER,
];

const CHECKS: &[fn(&Facts) -> Vec<Finding>] = &[
    host::capabilities,
    host::not_root,
    host::kernel,
    host::firewall_program,
    host::checksum_offload,
    host::port_taken,
    host::tunnel_taken,
    daemons::not_running,
    daemons::others,
    registry::config,
    registry::bad_records,
    registry::clock,
    certificates::dates,
    addresses::interface,
    addresses::public_address,
    addresses::shared,
    leases::own,
    leases::overlap,
    leases::hosts,
    overlap::underlay,
    overlap::addresses,
    overlap::routes,
    forwarding::off,
    forwarding::reverse_path,
    forwarding::bridge,
    objects::changes,
    objects::peers,
    mtu::device,
    mtu::bridge,
    mtu::subnet_file,
    firewall::blocking_rules,
    firewall::rules,
    managers::managed,
];

/// Returns the findings for a host.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    CHECKS.iter().flat_map(|check| check(facts)).collect()
}

#[cfg(test)]
mod tests;
