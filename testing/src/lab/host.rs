//! A host of the lab, and the pods on it.

use super::names::{Name, Names};
use super::{
    INTERFACE, LabError, add_addresses, add_default_routes, connect, create_up, index_of, new_namespace,
    next, wait_until_running,
};
use flannel_netlink::{LinkChange, Namespace, Netlink, NewLink, NewLinkKind};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// The bridge of a host's pods, named as the CNI plugin names it.
const POD_BRIDGE: &str = "cni0";

/// A host: a namespace with an address on the underlay, that forwards packets.
#[derive(Debug)]
pub struct Host {
    /// Its name, such as `host-1`.
    pub name: String,
    /// Where its daemon runs and its devices are.
    pub namespace: Namespace,
    /// Its addresses on the underlay, IPv4 first; IPv6 if the kernel has it.
    pub addresses: Vec<IpNet>,
    pub(super) pods: AtomicU32,
    pub(super) switch: Namespace,
    pub(super) port: String,
    pub(super) names: Arc<Names>,
    pub(super) _name: Option<Name>,
}

/// A pod: a namespace with addresses of its host's subnet, whose default route is its host.
#[derive(Debug)]
pub struct Pod {
    /// Its name, such as `host-1-pod-1`.
    pub name: String,
    /// Where its programs run.
    pub namespace: Namespace,
    /// Its addresses, one in each of the subnets given.
    pub addresses: Vec<IpAddr>,
    _name: Option<Name>,
}

impl Host {
    /// Its IPv4 address on the underlay.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|net| if let IpNet::V4(net) = net { Some(net.addr()) } else { None })
    }

    /// Its IPv6 address on the underlay, if the kernel has IPv6.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|net| if let IpNet::V6(net) = net { Some(net.addr()) } else { None })
    }

    /// Starts a pod: a namespace joined to the bridge `cni0` of this host, with the next free address of each subnet.
    ///
    /// The bridge is made with the first pod and has the first address of each subnet, which is the pods' gateway, as
    /// the CNI plugin does it. `mtu` (bytes) is that of the overlay.
    ///
    /// # Errors
    /// [`LabError::SubnetFull`] when a subnet is too small for one more pod.
    pub fn add_pod(&self, subnets: &[IpNet], mtu: u32) -> Result<Pod, LabError> {
        let number = next(&self.pods) + 1;
        // The subnet's own address is the overlay device's, and the first one is the gateway.
        let addresses = nth_addresses(subnets, 1 + u128::from(number))?;
        let gateways = nth_addresses(subnets, 1)?;
        self.ensure_bridge(&gateways, mtu)?;
        let name = format!("{}-pod-{number}", self.name);
        let namespace = new_namespace(false)?;
        let handle = self.names.give(&name, &namespace)?;
        let index = connect(&namespace, &self.namespace, &format!("pod{number}"), POD_BRIDGE, mtu)?;
        let mut netlink = Netlink::open_in(&namespace)?;
        add_addresses(&mut netlink, index, &addresses)?;
        add_default_routes(&mut netlink, &gateways)?;
        let addresses = addresses.iter().map(IpNet::addr).collect();
        Ok(Pod { name, namespace, addresses, _name: handle })
    }

    /// Pulls the cable: the host's link to the switch loses its carrier, all else stays.
    ///
    /// # Errors
    /// Fails when the switch has lost the port.
    pub fn unplug(&self) -> Result<(), LabError> {
        self.set_port(false)
    }

    /// Puts the cable back, and waits until both ends of it carry packets.
    ///
    /// # Errors
    /// Fails when the switch has lost the port, or the host its interface.
    pub fn plug(&self) -> Result<(), LabError> {
        self.set_port(true)?;
        wait_until_running(&mut Netlink::open_in(&self.switch)?, &self.port)?;
        wait_until_running(&mut Netlink::open_in(&self.namespace)?, INTERFACE)
    }

    fn set_port(&self, up: bool) -> Result<(), LabError> {
        let mut netlink = Netlink::open_in(&self.switch)?;
        let port = index_of(&mut netlink, &self.port)?;
        Ok(netlink.change_link(port, &LinkChange { up: Some(up), ..LinkChange::default() })?)
    }

    /// Creates the bridge of the pods unless it is there, and gives it the gateway addresses.
    fn ensure_bridge(&self, gateways: &[IpNet], mtu: u32) -> Result<(), LabError> {
        let mut netlink = Netlink::open_in(&self.namespace)?;
        let index = match netlink.link(POD_BRIDGE)? {
            Some(link) => link.index,
            None => {
                let bridge = NewLink::new(POD_BRIDGE, NewLinkKind::Bridge);
                create_up(&mut netlink, NewLink { mtu: Some(mtu), ..bridge })?
            }
        };
        add_addresses(&mut netlink, index, gateways)
    }
}

impl Pod {
    /// Its IPv4 address, if it has one.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None })
    }

    /// Its IPv6 address, if it has one.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })
    }
}

/// Address number `n` of each subnet, where its network address is number 0, with the subnet's prefix length.
fn nth_addresses(subnets: &[IpNet], n: u128) -> Result<Vec<IpNet>, LabError> {
    subnets.iter().map(|subnet| nth_address(*subnet, n).ok_or(LabError::SubnetFull(*subnet))).collect()
}

fn nth_address(subnet: IpNet, n: u128) -> Option<IpNet> {
    let address = match subnet.network() {
        IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).checked_add(u32::try_from(n).ok()?)?.into()),
        IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).checked_add(n)?.into()),
    };
    // The last address of an IPv4 subnet is its broadcast address.
    let fits = subnet.contains(&address) && address != subnet.broadcast();
    fits.then(|| IpNet::new(address, subnet.prefix_len()).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_address_lies_in_its_subnet_and_is_not_the_broadcast_address() {
        let nth = |subnet: &str, n| nth_address(subnet.parse().unwrap(), n).map(|net| net.to_string());
        assert_eq!(nth("10.5.3.0/24", 1).as_deref(), Some("10.5.3.1/24"));
        assert_eq!(nth("10.5.3.7/24", 254).as_deref(), Some("10.5.3.254/24"));
        assert_eq!(nth("10.5.3.0/24", 255), None);
        assert_eq!(nth("10.5.3.0/24", 1 << 40), None);
        assert_eq!(nth("fd00:1::/64", 2).as_deref(), Some("fd00:1::2/64"));
        assert_eq!(nth("255.255.255.0/24", 256), None);
    }
}
