//! Leases, and the records that contain them.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::NetworkConfig;
use crate::family::IpFamilies;
use crate::json::{Json, JsonError, Object};
use crate::subnet::SubnetKey;

/// The lease of a subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet.
    pub subnet: SubnetKey,
    /// The attributes of the host that holds it.
    pub attrs: LeaseAttrs,
    /// The registry's revision of the record.
    pub revision: Revision,
    /// Whether the lease expires.
    pub term: Term,
}

impl Lease {
    /// Creates a lease without a registry: it doesn't expire and has no revision.
    #[must_use]
    pub fn new(subnet: SubnetKey, attrs: LeaseAttrs) -> Self {
        Self { subnet, attrs, revision: Revision::default(), term: Term::Permanent }
    }

    /// Returns true if the lease has the same public IPv4 address or, without one, the same IPv6 address.
    #[must_use]
    pub fn is_held_by(&self, public: &PublicAddrs) -> bool {
        match public.v4 {
            Some(v4) => self.attrs.public.v4 == Some(v4),
            None => public.v6.is_some() && self.attrs.public == *public,
        }
    }

    /// Returns how the lease matches the host with these addresses and this ID; `None` if it belongs to another host.
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

/// How a lease matches a host, the strongest match first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseMatch {
    /// The ID matches: it is the same host, even if its addresses changed.
    Id,
    /// The public address matches, and the lease or the host has no ID, like those of upstream.
    Address,
    /// The public address matches and the ID differs: the host lost its ID, or two hosts share an address.
    AddressOfOtherId,
}

/// A stable 128-bit host ID, which a host draws once and keeps when its addresses change.
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
    /// Creates an ID from unique bytes.
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

/// A text isn't a host ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a host ID is 32 hexadecimal digits")]
pub struct NodeIdError;

/// The logical time of a registry, which increases with each write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a lease expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// The lease expires unless it is renewed.
    Limited,
    /// The lease is a reservation: it neither expires nor needs renewal.
    Permanent,
}

/// The attributes of a host in its lease.
///
/// The text form is the record that flannel stores in etcd: a compact JSON object with its members in a fixed order. Records of
/// all upstream releases are readable. The last member, `NodeID`, is not upstream's: upstream ignores it, and drops it when
/// it rewrites a record.
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
    /// The addresses to which peers send.
    pub public: PublicAddrs,
    /// The backend.
    pub backend_type: BackendType,
    /// The data that peers need for IPv4.
    pub backend_data: Option<Json>,
    /// The data that peers need for IPv6.
    pub backend_v6_data: Option<Json>,
    /// The ID of the host, if it has one. The lease manager sets it.
    pub node: Option<NodeId>,
}

impl LeaseAttrs {
    /// Creates the attributes of a host whose backend provides none. See also
    /// [`BackendAttrs::at`](crate::BackendAttrs::at).
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

    /// Sets the ID of the host.
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
    /// [`LeaseError`] names the malformed member.
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
            // A malformed ID must not make the lease unusable.
            node: object.string(NODE).ok().flatten().and_then(|text| text.parse().ok()),
        })
    }
}

/// The member that contains the host ID.
const NODE: &str = "NodeID";

/// The reasons why a record is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The record isn't a JSON object, or a member has the wrong type; its owner must rewrite it.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member isn't an address of its family; its owner must rewrite the record.
    #[error("{member} is not an address of its family: {text:?}")]
    Address {
        /// The name of the member.
        member: &'static str,
        /// Its value.
        text: String,
    },
}

fn address<A: std::str::FromStr>(object: &Object<'_>, member: &'static str) -> Result<Option<A>, LeaseError> {
    let Some(text) = object.text(member)? else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| LeaseError::Address { member, text: text.into_owned() })
}

/// Escapes the characters that Go's encoder escapes. In JSON they only occur inside strings.
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

/// The addresses at which other hosts reach a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicAddrs {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl PublicAddrs {
    /// Returns the addresses of the overlay's families. For a backend that may use others, pass
    /// [`OpenBackend::underlay`](crate::OpenBackend::underlay) to [`only`](Self::only).
    #[must_use]
    pub fn used_by(self, config: &NetworkConfig) -> Self {
        self.only(config.families())
    }

    /// Returns the addresses of these families.
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

/// The name of a backend in a lease, such as `vxlan`. Peers compare it exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendType(Cow<'static, str>);

impl BackendType {
    /// VXLAN.
    pub const VXLAN: Self = Self(Cow::Borrowed("vxlan"));
    /// Plain routes.
    pub const HOST_GW: Self = Self(Cow::Borrowed("host-gw"));
    /// The empty name of backends that omit theirs: `udp`, `alloc` and the cloud backends.
    pub const UNNAMED: Self = Self(Cow::Borrowed(""));

    /// Returns the name, which may be empty.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Cow<'_, str>> for BackendType {
    /// Well-known names need no allocation.
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
