//! The families of a network, and what it has for each.

use flannel_core::{BackendConfig, BackendError, Lease, NetworkConfig, SubnetPool};
use flannel_netlink::IpFamily;
use ipnet::IpNet;

/// The families that a network has, each with its addresses.
pub fn families(config: &NetworkConfig) -> impl Iterator<Item = (IpFamily, SubnetPool)> + use<> {
    let v4 = config.ipv4.map(|pool| (IpFamily::V4, pool));
    let v6 = config.ipv6.map(|pool| (IpFamily::V6, pool));
    v4.into_iter().chain(v6)
}

pub fn pool(config: &NetworkConfig, family: IpFamily) -> Option<SubnetPool> {
    match family {
        IpFamily::V4 => config.ipv4,
        IpFamily::V6 => config.ipv6,
    }
}

/// The host's own subnet, which its lease has for each family of the network.
pub fn own_subnet(own: &Lease, family: IpFamily) -> Result<IpNet, BackendError> {
    let subnet = own.subnet.nets().find(|net| IpFamily::of(net.addr()) == family);
    subnet.ok_or_else(|| BackendError::Host(format!("the lease {} has no {family} subnet", own.subnet)))
}

/// A backend of one kind does not become one of another.
pub fn same_kind(before: &BackendConfig, now: &BackendConfig) -> Result<(), BackendError> {
    match now.name.eq_ignore_ascii_case(&before.name) {
        true => Ok(()),
        false => {
            Err(BackendError::Host(format!("to go from {} to {} takes a restart", before.name, now.name)))
        }
    }
}
