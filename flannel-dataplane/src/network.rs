//! What backends ask of a network's configuration and of the host's lease.

use flannel_core::{BackendConfig, BackendError, Lease, NetworkConfig, SubnetPool};
use flannel_netlink::IpFamily;
use ipnet::IpNet;

/// Returns the families of a network with their pools, IPv4 first.
pub fn family_pools(config: &NetworkConfig) -> impl Iterator<Item = (IpFamily, SubnetPool)> + use<> {
    let v4 = config.ipv4.map(|pool| (IpFamily::V4, pool));
    let v6 = config.ipv6.map(|pool| (IpFamily::V6, pool));
    v4.into_iter().chain(v6)
}

/// Returns the subnet of a family in the host's own lease.
///
/// # Errors
///
/// [`BackendError::Host`] if the lease has none.
pub fn own_subnet(own: &Lease, family: IpFamily) -> Result<IpNet, BackendError> {
    let subnet = own.subnet.nets().find(|net| IpFamily::of(net.addr()) == family);
    subnet.ok_or_else(|| BackendError::Host(format!("the lease {} has no {family} subnet", own.subnet)))
}

/// Refuses a configuration that changes the backend's type, which only a restart can do.
///
/// # Errors
///
/// [`BackendError::Host`] with both types.
pub fn check_same_type(before: &BackendConfig, now: &BackendConfig) -> Result<(), BackendError> {
    if now.name.eq_ignore_ascii_case(&before.name) {
        return Ok(());
    }
    Err(BackendError::Host(format!(
        "changing the backend from {} to {} needs a restart",
        before.name, now.name
    )))
}
