//! A host of the lab, and its pods.

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

/// The bridge of a host's pods, named as by the CNI plugin.
const POD_BRIDGE: &str = "cni0";

/// A host: a namespace with addresses on the underlay that forwards packets.
#[derive(Debug)]
pub struct Host {
    /// The name, such as `host-1`.
    pub name: String,
    /// The namespace of its daemon and devices.
    pub namespace: Namespace,
    /// The addresses on the underlay: IPv4 first, and IPv6 if the kernel has it.
    pub addresses: Vec<IpNet>,
    pub(super) pods: AtomicU32,
    pub(super) switch: Namespace,
    pub(super) port: String,
    pub(super) names: Arc<Names>,
    pub(super) _name: Option<Name>,
}

/// A pod: a namespace with addresses from its host's subnet and a default route through its host.
#[derive(Debug)]
pub struct Pod {
    /// The name, such as `host-1-pod-1`.
    pub name: String,
    /// The namespace of its programs.
    pub namespace: Namespace,
    /// The addresses, one from each subnet.
    pub addresses: Vec<IpAddr>,
    _name: Option<Name>,
}

impl Host {
    /// Returns the IPv4 address on the underlay.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|net| if let IpNet::V4(net) = net { Some(net.addr()) } else { None })
    }

    /// Returns the IPv6 address on the underlay, if the kernel has IPv6.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|net| if let IpNet::V6(net) = net { Some(net.addr()) } else { None })
    }

    /// Creates a pod: a namespace connected to the bridge `cni0` of this host, with the next free address of each
    /// subnet.
    ///
    /// Creates the bridge with the first pod. The bridge has the first address of each subnet, the pods' gateway, as
    /// the CNI plugin does. `mtu` (bytes) is that of the overlay.
    ///
    /// # Errors
    /// [`LabError::SubnetFull`] if a subnet has no free address.
    pub fn add_pod(&self, subnets: &[IpNet], mtu: u32) -> Result<Pod, LabError> {
        let number = next(&self.pods) + 1;
        // The subnet's own address belongs to the overlay device, and the first one is the gateway.
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

    /// Disconnects the host from the switch: its link loses the carrier.
    ///
    /// # Errors
    /// Fails if the switch lost the port.
    pub fn unplug(&self) -> Result<(), LabError> {
        self.set_port(false)
    }

    /// Reconnects the host to the switch and waits until both ends pass packets.
    ///
    /// # Errors
    /// Fails if the switch lost the port, or the host its interface.
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

    /// Creates the bridge of the pods if it is missing, and adds the gateway addresses.
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
    /// Returns the IPv4 address, if there is one.
    #[must_use]
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(*v4) } else { None })
    }

    /// Returns the IPv6 address, if there is one.
    #[must_use]
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.addresses.iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(*v6) } else { None })
    }
}

/// Returns address number `n` of each subnet with its prefix length; number 0 is the network address.
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
