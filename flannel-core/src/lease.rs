//! A lease: which host holds which subnet, and how to reach it.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::family::IpFamilies;
use crate::json::{Json, JsonError, Object};
use crate::{NetworkConfig, SubnetKey};

/// A lease as a registry holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet that is leased.
    pub subnet: SubnetKey,
    /// What its holder says about itself.
    pub attrs: LeaseAttrs,
    /// When the registry last changed the record.
    pub revision: Revision,
    /// Whether it ends unless it is renewed.
    pub term: Term,
}

impl Lease {
    /// Puts a lease together that no registry holds: it has no end, and nobody counts its changes.
    #[must_use]
    pub fn new(subnet: SubnetKey, attrs: LeaseAttrs) -> Self {
        Self { subnet, attrs, revision: Revision::default(), term: Term::Permanent }
    }

    /// Tells whether the lease names the same host: the same public IPv4 address or, without one, the same IPv6.
    #[must_use]
    pub fn is_held_by(&self, public: &PublicAddrs) -> bool {
        match public.v4 {
            Some(v4) => self.attrs.public.v4 == Some(v4),
            None => public.v6.is_some() && self.attrs.public == *public,
        }
    }

    /// Tells why the lease may be that of the host with these addresses and this id; not at all if it is another's.
    #[must_use]
    pub fn match_host(&self, public: &PublicAddrs, node: Option<NodeId>) -> Option<LeaseMatch> {
        match (node, self.attrs.node) {
            (Some(own), Some(other)) if own == other => Some(LeaseMatch::Id),
            _ if !self.is_held_by(public) => None,
            (Some(_), Some(_)) => Some(LeaseMatch::AddressOfOtherId),
            (None, _) | (_, None) => Some(LeaseMatch::Address),
        }
    }
}

/// What a host has in common with the holder of a lease, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseMatch {
    /// The id: it is the same host, also if its addresses changed.
    Id,
    /// The public address, and one of the two has no id, as upstream's have none.
    Address,
    /// The public address but not the id: it is the same host if it lost its id, or two hosts have one address.
    AddressOfOtherId,
}

/// What tells a host from all others though its addresses change: 128 bits that it drew once and keeps.
///
/// ```
/// use flannel_core::NodeId;
///
/// let id = NodeId::from_bytes([7; 16]);
/// assert_eq!(id.to_string(), "07070707070707070707070707070707");
/// assert_eq!(id.to_string().parse(), Ok(id));
/// assert!("7".parse::<NodeId>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 16]);

impl NodeId {
    /// Takes bytes that nobody else has.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number.map(|number| Self(number.to_be_bytes())).ok_or(NodeIdError)
    }
}

/// A text is no id of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id of a host is 32 hexadecimal digits")]
pub struct NodeIdError;

/// A registry's logical time: it grows with every change of its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a lease ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// It runs out unless it is renewed in time.
    Limited,
    /// It is a reservation: it has no end and is never renewed.
    Permanent,
}

/// What a host says about itself in its lease.
///
/// Its text form is the record that flannel keeps in etcd: one compact JSON object, its members in a fixed order.
/// Reading accepts what every release of flannel has written. `NodeID`, the last member, is none of upstream's: it
/// ignores what it does not know, and leaves it out when it writes a record anew.
///
/// ```
/// use std::net::Ipv4Addr;
/// use flannel_core::{BackendAttrs, BackendType, Json, LeaseAttrs};
///
/// let data = Json::parse(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#)?;
/// let vxlan = BackendAttrs::new(BackendType::VXLAN).with_data(Some(data));
/// let attrs = vxlan.at(Ipv4Addr::new(192, 168, 64, 3).into());
/// let record = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","#.to_owned()
///     + r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
/// assert_eq!(attrs.to_record(), record);
/// assert_eq!(LeaseAttrs::from_record(&record)?, attrs);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LeaseAttrs {
    /// Where other hosts send this host's traffic.
    pub public: PublicAddrs,
    /// Which backend carries it.
    pub backend_type: BackendType,
    /// What the backend's peers need to know for IPv4.
    pub backend_data: Option<Json>,
    /// What the backend's peers need to know for IPv6.
    pub backend_v6_data: Option<Json>,
    /// Which host it is, if it has an id. Whoever manages the lease says it.
    pub node: Option<NodeId>,
}

impl LeaseAttrs {
    /// Starts the record of a host whose backend has nothing to say; [`BackendAttrs::at`](crate::BackendAttrs::at)
    /// starts that of one whose backend has.
    #[must_use]
    pub fn new(public: PublicAddrs) -> Self {
        Self {
            public,
            backend_type: BackendType::UNNAMED,
            backend_data: None,
            backend_v6_data: None,
            node: None,
        }
    }

    /// Says which host it is, if it has an id.
    #[must_use]
    pub fn with_node(self, node: Option<NodeId>) -> Self {
        Self { node, ..self }
    }

    /// Writes the record.
    #[must_use]
    pub fn to_record(&self) -> String {
        let mut record = format!(r#"{{"PublicIP":"{}""#, self.public.v4.unwrap_or(Ipv4Addr::UNSPECIFIED));
        match self.public.v6 {
            Some(v6) => record.push_str(&format!(r#","PublicIPv6":"{v6}""#)),
            None => record.push_str(r#","PublicIPv6":null"#),
        }
        if self.backend_type != BackendType::UNNAMED {
            let name = serde_json::Value::from(self.backend_type.as_str());
            record.push_str(&format!(r#","BackendType":{name}"#));
        }
        for (member, data) in [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)]
        {
            if let Some(data) = data {
                record.push_str(&format!(r#","{member}":{data}"#));
            }
        }
        if let Some(node) = self.node {
            record.push_str(&format!(r#","{NODE}":"{node}""#));
        }
        record.push('}');
        escape_html(&record).into_owned()
    }

    /// Reads a record.
    ///
    /// # Errors
    ///
    /// [`LeaseError`] names the member that cannot be read.
    pub fn from_record(record: &str) -> Result<Self, LeaseError> {
        let object = Object::parse(record)?;
        let v4 = address(&object, "PublicIP")?.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let v6 = address(&object, "PublicIPv6")?.unwrap_or(Ipv6Addr::UNSPECIFIED);
        Ok(Self {
            public: PublicAddrs {
                v4: (!v4.is_unspecified()).then_some(v4),
                v6: (!v6.is_unspecified()).then_some(v6),
            },
            backend_type: object.text("BackendType")?.unwrap_or_default().into(),
            backend_data: object.value("BackendData"),
            backend_v6_data: object.value("BackendV6Data"),
            // Whatever else somebody writes there is no reason not to use the lease.
            node: object.string(NODE).ok().flatten().and_then(|text| text.parse().ok()),
        })
    }
}

/// The member of a record that names the host.
const NODE: &str = "NodeID";

/// Why the record of a lease cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// It is not a JSON object, or a member has the wrong type; the record's owner must write it again.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member does not hold an address of its family; the record's owner must write it again.
    #[error("{member} is not an address of its family: {text:?}")]
    Address {
        /// The member's name.
        member: &'static str,
        /// What it holds.
        text: String,
    },
}

fn address<A: std::str::FromStr>(object: &Object<'_>, member: &'static str) -> Result<Option<A>, LeaseError> {
    let Some(text) = object.text(member)? else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| LeaseError::Address { member, text: text.into_owned() })
}

/// Escapes what Go's encoder escapes. In JSON these characters occur inside strings only.
fn escape_html(json: &str) -> Cow<'_, str> {
    if !json.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)))
            }
            c => escaped.push(c),
        }
    }
    escaped.into()
}

/// The addresses under which other hosts reach a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicAddrs {
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl PublicAddrs {
    /// Keeps the addresses of the overlay's families only, as flannel does in its leases. A backend with another underlay
    /// overrides [`OpenBackend::underlay`](crate::OpenBackend::underlay); use [`only`](Self::only) with its result.
    #[must_use]
    pub fn used_by(self, config: &NetworkConfig) -> Self {
        self.only(config.families())
    }

    /// Keeps the addresses of these families only.
    #[must_use]
    pub fn only(self, families: IpFamilies) -> Self {
        Self { v4: self.v4.filter(|_| families.v4), v6: self.v6.filter(|_| families.v6) }
    }

    /// Returns the addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl From<Ipv4Addr> for PublicAddrs {
    fn from(v4: Ipv4Addr) -> Self {
        Self { v4: Some(v4), v6: None }
    }
}

impl fmt::Display for PublicAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, address) in self.addresses().enumerate() {
            write!(f, "{}{address}", if i == 0 { "" } else { " and " })?;
        }
        Ok(())
    }
}

/// The name of a backend in a lease, such as `vxlan`. Peers compare it letter for letter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendType(Cow<'static, str>);

impl BackendType {
    /// The backend that encapsulates in the kernel.
    pub const VXLAN: Self = Self(Cow::Borrowed("vxlan"));
    /// The backend of plain routes.
    pub const HOST_GW: Self = Self(Cow::Borrowed("host-gw"));
    /// What backends write that leave their name out: `udp`, `alloc` and the cloud ones.
    pub const UNNAMED: Self = Self(Cow::Borrowed(""));

    /// Returns the name; empty if the lease has none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Cow<'_, str>> for BackendType {
    /// Takes a name; well-known ones cost no memory of their own.
    fn from(name: Cow<'_, str>) -> Self {
        [Self::VXLAN, Self::HOST_GW, Self::UNNAMED]
            .into_iter()
            .find(|known| known.0 == name)
            .unwrap_or_else(|| Self(Cow::Owned(name.into_owned())))
    }
}

impl From<String> for BackendType {
    fn from(name: String) -> Self {
        Cow::<str>::Owned(name).into()
    }
}

impl fmt::Display for BackendType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
