//! The attributes of VXLAN devices (`IFLA_VXLAN_*`, `linux/if_link.h`).

use std::net::IpAddr;

use netlink_packet_core::{DecodeError, ErrorContext, NlasIterator, Parseable};
use netlink_packet_route::link::InfoVxlan;

/// A VXLAN device to create.
///
/// The request turns off everything else that it can: proxy, route short-circuit, L3-miss notifications and
/// zero UDP checksums over IPv6; TTL and TOS are 0 (chosen by the kernel). Ageing, limit, source ports and
/// the UDP checksum over IPv4 keep the kernel's defaults.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NewVxlan {
    /// The network identifier, 24 bits (RFC 7348, section 5).
    pub vni: u32,
    /// The index of the underlay link. The kernel deletes the device with it.
    pub lower: Option<u32>,
    /// The source address of the outer packets.
    pub local: Option<IpAddr>,
    /// The UDP port; `None` means the kernel's default, 8472.
    pub port: Option<u16>,
    /// The default destination, or multicast group, for unknown MAC addresses.
    pub group: Option<IpAddr>,
    /// Whether MAC addresses are learned from received packets.
    pub learning: bool,
    /// Whether the Group Based Policy extension is used.
    pub gbp: bool,
    /// Whether the kernel sends notifications of unknown MAC addresses.
    pub l2_miss: bool,
}

impl NewVxlan {
    /// Returns the attributes in upstream flannel's order.
    pub(crate) fn attributes(&self) -> Vec<InfoVxlan> {
        let mut attributes = vec![InfoVxlan::Id(self.vni)];
        attributes.extend(self.group.map(|group| match group {
            IpAddr::V4(group) => InfoVxlan::Group(group),
            IpAddr::V6(group) => InfoVxlan::Group6(group),
        }));
        attributes.extend(self.lower.map(InfoVxlan::Link));
        attributes.extend(self.local.map(local_attribute));
        attributes.extend([
            InfoVxlan::Ttl(0),
            InfoVxlan::Tos(0),
            InfoVxlan::Learning(self.learning),
            InfoVxlan::Proxy(false),
            InfoVxlan::Rsc(false),
            InfoVxlan::L2Miss(self.l2_miss),
            InfoVxlan::L3Miss(false),
            InfoVxlan::UDPZeroCsumTX(false),
            InfoVxlan::UDPZeroCsumRX(false),
        ]);
        attributes.extend(self.gbp.then_some(InfoVxlan::Gbp));
        attributes.extend(self.port.map(InfoVxlan::Port));
        attributes
    }
}

/// A change of a VXLAN device that keeps its routes and entries; fields that are `None` stay unchanged.
///
/// Old kernels refuse it (`vxlan_changelink` in `drivers/net/vxlan/vxlan_core.c`), and every kernel refuses an address
/// of the other family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VxlanChange {
    /// The index of the underlay link.
    pub lower: Option<u32>,
    /// The source address of the outer packets.
    pub local: Option<IpAddr>,
}

impl VxlanChange {
    pub(crate) fn attributes(&self) -> Vec<InfoVxlan> {
        let lower = self.lower.map(InfoVxlan::Link);
        lower.into_iter().chain(self.local.map(local_attribute)).collect()
    }
}

fn local_attribute(local: IpAddr) -> InfoVxlan {
    match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }
}

/// A VXLAN device as the kernel reports it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The index of the underlay link.
    pub lower: Option<u32>,
    /// The source address of the outer packets.
    pub local: Option<IpAddr>,
    /// The default destination, or multicast group.
    pub group: Option<IpAddr>,
    /// The UDP destination port.
    pub port: u16,
    /// The range of UDP source ports; 0 and 0 means the host's local range.
    pub port_range: (u16, u16),
    /// The outer TTL; for 0 the kernel chooses it.
    pub ttl: u8,
    /// The outer TOS; 1 copies the inner one.
    pub tos: u8,
    /// The age in seconds at which learned MAC addresses expire.
    pub ageing: u32,
    /// The limit of forwarding entries; 0 means none.
    pub limit: u32,
    /// Whether MAC addresses are learned from received packets.
    pub learning: bool,
    /// Whether the Group Based Policy extension is used.
    pub gbp: bool,
    /// Whether the Generic Protocol Extension is used.
    pub gpe: bool,
    /// Whether ARP requests are answered from the neighbour table.
    pub proxy: bool,
    /// Whether routes are short-circuited.
    pub rsc: bool,
    /// Whether the kernel sends notifications of unknown MAC addresses.
    pub l2_miss: bool,
    /// Whether the kernel sends notifications of unknown IP addresses.
    pub l3_miss: bool,
    /// Whether outer UDP checksums over IPv4 are sent.
    pub udp_checksum: bool,
    /// Whether packets over IPv6 are sent without a UDP checksum.
    pub zero_checksum6_tx: bool,
    /// Whether packets over IPv6 without a UDP checksum are accepted.
    pub zero_checksum6_rx: bool,
    /// Whether each packet carries the tunnel parameters (`external`).
    pub external: bool,
}

impl Vxlan {
    /// Reads `IFLA_INFO_DATA` of a link of kind `vxlan`.
    #[expect(clippy::wildcard_enum_match_arm, reason = "attributes that are not compared are skipped")]
    pub(crate) fn read(data: &[u8]) -> Result<Self, DecodeError> {
        let mut vxlan = Self::default();
        for attribute in NlasIterator::new(data) {
            match InfoVxlan::parse(&attribute?).context("IFLA_INFO_DATA of a vxlan device")? {
                InfoVxlan::Id(vni) => vxlan.vni = vni,
                InfoVxlan::Link(index) => vxlan.lower = Some(index).filter(|index| *index != 0),
                InfoVxlan::Local(address) => vxlan.local = specified(address.into()),
                InfoVxlan::Local6(address) => vxlan.local = specified(address.into()),
                InfoVxlan::Group(address) => vxlan.group = specified(address.into()),
                InfoVxlan::Group6(address) => vxlan.group = specified(address.into()),
                InfoVxlan::Port(port) => vxlan.port = port,
                InfoVxlan::PortRange(range) => vxlan.port_range = range,
                InfoVxlan::Ttl(ttl) => vxlan.ttl = ttl,
                InfoVxlan::Tos(tos) => vxlan.tos = tos,
                InfoVxlan::Ageing(seconds) => vxlan.ageing = seconds,
                InfoVxlan::Limit(limit) => vxlan.limit = limit,
                InfoVxlan::Learning(on) => vxlan.learning = on,
                InfoVxlan::Gbp => vxlan.gbp = true,
                InfoVxlan::Gpe => vxlan.gpe = true,
                InfoVxlan::Proxy(on) => vxlan.proxy = on,
                InfoVxlan::Rsc(on) => vxlan.rsc = on,
                InfoVxlan::L2Miss(on) => vxlan.l2_miss = on,
                InfoVxlan::L3Miss(on) => vxlan.l3_miss = on,
                InfoVxlan::UDPCsum(on) => vxlan.udp_checksum = on,
                InfoVxlan::UDPZeroCsumTX(on) => vxlan.zero_checksum6_tx = on,
                InfoVxlan::UDPZeroCsumRX(on) => vxlan.zero_checksum6_rx = on,
                InfoVxlan::CollectMetadata(on) => vxlan.external = on,
                _ => {}
            }
        }
        Ok(vxlan)
    }
}

fn specified(address: IpAddr) -> Option<IpAddr> {
    Some(address).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Nla;

    use super::*;

    #[test]
    fn attributes_are_in_upstreams_order() {
        let device = NewVxlan {
            vni: 1,
            lower: Some(2),
            local: Some("10.88.0.1".parse().unwrap()),
            port: Some(4789),
            gbp: true,
            ..NewVxlan::default()
        };
        let sent: Vec<(u16, Vec<u8>)> = device
            .attributes()
            .iter()
            .map(|attribute| {
                let mut value = vec![0; attribute.value_len()];
                attribute.emit_value(&mut value);
                (attribute.kind(), value)
            })
            .collect();
        let expected: Vec<(u16, Vec<u8>)> = vec![
            (0x01, 1_u32.to_ne_bytes().to_vec()),
            (0x03, 2_u32.to_ne_bytes().to_vec()),
            (0x04, vec![10, 88, 0, 1]),
            (0x05, vec![0]),
            (0x06, vec![0]),
            (0x07, vec![0]),
            (0x0b, vec![0]),
            (0x0c, vec![0]),
            (0x0d, vec![0]),
            (0x0e, vec![0]),
            (0x13, vec![0]),
            (0x14, vec![0]),
            (0x17, vec![]),
            (0x0f, vec![0x12, 0xb5]),
        ];
        assert_eq!(sent, expected);
    }
}
