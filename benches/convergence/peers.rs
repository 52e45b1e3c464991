//! The peers, and the host's own lease.

use std::net::{IpAddr, Ipv4Addr};

use flannel_core::{BackendAttrs, BackendType, Json, Lease, LeaseAttrs, Revision, SubnetKey, Term};
use flannel_netlink::Mac;
use ipnet::Ipv4Net;

pub(crate) const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

/// The host's own subnet, after those of all peers.
pub(crate) const OWN_SUBNET: &str = "10.255.0.0-24";

/// 10.1.0.0/24 and on.
pub(crate) fn subnet(n: u32) -> Ipv4Net {
    let start = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + (n << 8));
    Ipv4Net::new(start, 24).unwrap()
}

/// 172.16.0.0 and on.
pub(crate) fn public(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 16, 0, 0)) + n)
}

/// Returns the MAC address of a peer's device; each generation is another device.
pub(crate) fn mac(n: u32, generation: u8) -> Mac {
    let [a, b, c, d] = n.to_be_bytes();
    Mac([0x0e, generation, a, b, c, d])
}

/// Returns the attributes of a peer.
pub(crate) fn attrs(n: u32, generation: u8) -> LeaseAttrs {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(n, generation));
    BackendAttrs::new(BackendType::VXLAN).with_data(Some(Json::parse(&data).unwrap())).at(public(n).into())
}

pub(crate) fn lease(n: u32, generation: u8) -> Lease {
    let subnet = SubnetKey::from(subnet(n));
    Lease { subnet, attrs: attrs(n, generation), revision: Revision(1), term: Term::Limited }
}

/// Returns the addresses in the objects of a peer.
pub(crate) struct Objects {
    pub(crate) subnet: Ipv4Net,
    pub(crate) mac: Mac,
    pub(crate) public: IpAddr,
}

pub(crate) fn objects(n: u32, generation: u8) -> Objects {
    Objects { subnet: subnet(n), mac: mac(n, generation), public: public(n).into() }
}
