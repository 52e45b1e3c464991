//! Routes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, ErrorContext, NlasIterator, parse_ip, parse_u32};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteHeader, RouteMessage};

use crate::error::Error;
use crate::family::IpFamily;
use crate::message::Message;
use crate::netlink::Netlink;
use crate::request_writer::RequestWriter;
use crate::socket::none_if_gone;

/// `sizeof(struct rtmsg)`.
const HEADER_LEN: usize = 12;

// `enum rtattr_type_t` in `linux/rtnetlink.h`.
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

/// A route.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Route {
    /// The destination. Host bits are not sent.
    pub destination: IpNet,
    /// The next hop; it may be of the other family (RFC 5549). `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The index of the outgoing link. When putting a route with a gateway, `None` lets the kernel find the
    /// link.
    pub index: Option<u32>,
    /// The metric; the route with the lowest wins. `None` puts the kernel's default, 0 for IPv4 and 1024 for
    /// IPv6, and deletes a route with any metric. Reading returns `None` for 0.
    pub metric: Option<u32>,
    /// The routing table.
    pub table: u32,
    /// The origin of the route (`RTPROT_*`).
    pub protocol: u8,
    /// The scope (`RT_SCOPE_*`). Always 0 for IPv6.
    pub scope: u8,
    /// The type of service to match; 0 matches any. Always 0 for IPv6.
    pub tos: u8,
    /// Whether the gateway is reachable on the link although no address of the link covers it.
    pub onlink: bool,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// The type.
    pub kind: RouteKind,
    /// Whether the route has several next hops. They are not read, and the route cannot be put.
    pub multipath: bool,
    /// The index of the link of the first of several next hops that is not dead. Not sent.
    pub first_link: Option<u32>,
    /// The ID of the nexthop object, if the route uses one. The route has no link and no gateway of its own if
    /// `net.ipv4.nexthop_compat_mode` is 0; see [`Netlink::nexthop_link`]. Not sent.
    pub nexthop: Option<u32>,
}

/// The type of a route (`RTN_*`, `linux/rtnetlink.h`).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum RouteKind {
    /// Packets are forwarded.
    #[default]
    Unicast,
    /// Packets are delivered to this host.
    Local,
    /// Packets are delivered to this host as link broadcasts.
    Broadcast,
    /// Packets are delivered to this host by an anycast address.
    Anycast,
    /// Packets are sent to a multicast group.
    Multicast,
    /// Packets are dropped silently.
    Blackhole,
    /// Packets are rejected as unreachable.
    Unreachable,
    /// Packets are rejected as prohibited.
    Prohibit,
    /// The lookup continues in the next table.
    Throw,
    /// Another type.
    Other(u8),
}

impl Route {
    /// The main table (`RT_TABLE_MAIN`).
    pub const MAIN_TABLE: u32 = 254;
    /// `RTPROT_KERNEL`: added by the kernel for an address.
    pub const PROTOCOL_KERNEL: u8 = 2;
    /// `RTPROT_BOOT`: added by a program that gave no protocol; `ip route` does not show it.
    pub const PROTOCOL_BOOT: u8 = 3;
    /// `RT_SCOPE_UNIVERSE`: behind a gateway.
    pub const SCOPE_UNIVERSE: u8 = 0;
    /// `RT_SCOPE_LINK`: on the link.
    pub const SCOPE_LINK: u8 = 253;

    /// Describes a route via a gateway in the main table, with protocol boot and scope universe. The kernel
    /// finds the link.
    pub fn by_gateway(destination: IpNet, gateway: IpAddr) -> Self {
        Self { gateway: Some(gateway), ..Self::to(destination) }
    }

    /// Describes a route as [`by_gateway`](Self::by_gateway) does, but on the given link, whose addresses
    /// need not cover the gateway. The link must be up, the gateway must not be an address of this host,
    /// and, for IPv4, the namespace must have an address, such as loopback's
    /// (`fib_check_nh_v4_gw` in `net/ipv4/fib_semantics.c`).
    pub fn onlink(destination: IpNet, gateway: IpAddr, index: u32) -> Self {
        Self { gateway: Some(gateway), index: Some(index), onlink: true, ..Self::to(destination) }
    }

    /// Describes a route to a destination on the link, in the main table, with protocol boot.
    pub fn attached(destination: IpNet, index: u32) -> Self {
        let scope = if destination.addr().is_ipv4() { Self::SCOPE_LINK } else { Self::SCOPE_UNIVERSE };
        Self { index: Some(index), scope, ..Self::to(destination) }
    }

    /// Describes a route in the main table that drops packets silently.
    pub fn blackhole(destination: IpNet) -> Self {
        Self { kind: RouteKind::Blackhole, ..Self::to(destination) }
    }

    /// Sets the metric.
    #[must_use]
    pub fn with_metric(self, metric: u32) -> Self {
        Self { metric: Some(metric), ..self }
    }

    fn to(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            index: None,
            metric: None,
            table: Self::MAIN_TABLE,
            protocol: Self::PROTOCOL_BOOT,
            scope: Self::SCOPE_UNIVERSE,
            tos: 0,
            onlink: false,
            source: None,
            kind: RouteKind::Unicast,
            multipath: false,
            first_link: None,
            nexthop: None,
        }
    }

    /// Writes the body of the requests that put and delete the route.
    pub(crate) fn write(&self, request: &mut RequestWriter<'_>) {
        let destination = self.destination.network();
        request.header(&RouteHeader {
            address_family: IpFamily::of(destination).into(),
            destination_prefix_length: self.destination.prefix_len(),
            tos: self.tos,
            table: u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC),
            protocol: self.protocol.into(),
            scope: self.scope.into(),
            kind: u8::from(self.kind).into(),
            flags: if self.onlink { RouteFlags::Onlink } else { RouteFlags::empty() },
            ..RouteHeader::default()
        });
        request.address(RTA_DST, destination);
        match (destination, self.gateway) {
            (_, None) => {}
            (IpAddr::V4(_), Some(IpAddr::V6(gateway))) => write_via(gateway, request),
            (IpAddr::V4(_) | IpAddr::V6(_), Some(gateway)) => request.address(RTA_GATEWAY, gateway),
        }
        if let Some(index) = self.index {
            request.attribute(RTA_OIF, &index.to_ne_bytes());
        }
        if let Some(metric) = self.metric {
            request.attribute(RTA_PRIORITY, &metric.to_ne_bytes());
        }
        if let Some(source) = self.source {
            request.address(RTA_PREFSRC, source);
        }
        if self.table > u32::from(u8::MAX) {
            request.attribute(RTA_TABLE, &self.table.to_ne_bytes());
        }
    }

    /// Reads a route; `None` if it is neither IPv4 nor IPv6.
    pub(crate) fn read(message: Message<'_>) -> Result<Option<Self>, DecodeError> {
        let header = RouteHeader::parse(message.payload)?;
        let Some(family) = IpFamily::of_message(header.address_family) else {
            return Ok(None);
        };
        let mut address = unspecified(family);
        let mut route = Self {
            table: u32::from(header.table),
            protocol: header.protocol.into(),
            scope: header.scope.into(),
            tos: header.tos,
            onlink: header.flags.contains(RouteFlags::Onlink),
            kind: u8::from(header.kind).into(),
            ..Self::to(IpNet::from(address))
        };
        for attribute in NlasIterator::new(message.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                RTA_DST => address = parse_ip(value).context("RTA_DST")?,
                RTA_GATEWAY => route.gateway = Some(parse_ip(value).context("RTA_GATEWAY")?),
                // `struct rtvia`: the family in two bytes, then the address.
                RTA_VIA => route.gateway = value.get(2..).and_then(|address| parse_ip(address).ok()),
                RTA_OIF => route.index = Some(parse_u32(value).context("RTA_OIF")?),
                RTA_PRIORITY => {
                    route.metric =
                        Some(parse_u32(value).context("RTA_PRIORITY")?).filter(|metric| *metric != 0);
                }
                RTA_PREFSRC => route.source = Some(parse_ip(value).context("RTA_PREFSRC")?),
                RTA_NH_ID => route.nexthop = Some(parse_u32(value).context("RTA_NH_ID")?),
                RTA_TABLE => route.table = parse_u32(value).context("RTA_TABLE")?,
                RTA_MULTIPATH => {
                    route.multipath = true;
                    route.first_link = first_link(value);
                }
                _ => {}
            }
        }
        route.destination = IpNet::new(address, header.destination_prefix_length)
            .map_err(|_| DecodeError::from("prefix too long"))?;
        Ok(Some(route))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(index) = self.index {
            write!(f, " dev {index}")?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

/// Selects routes to read; a field that is `None` matches all.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RouteFilter {
    /// Only routes of this family.
    pub family: Option<IpFamily>,
    /// Only routes that leave by this link.
    pub index: Option<u32>,
    /// Only routes in this table.
    pub table: Option<u32>,
    /// Only routes of this protocol.
    pub protocol: Option<u8>,
    /// Only routes of this type.
    pub kind: Option<RouteKind>,
}

impl RouteFilter {
    /// Returns whether the filter matches a route.
    pub fn matches(&self, route: &Route) -> bool {
        self.family.is_none_or(|family| family == IpFamily::of(route.destination.addr()))
            && self.index.is_none_or(|index| route.index == Some(index))
            && self.table.is_none_or(|table| route.table == table)
            && self.protocol.is_none_or(|protocol| route.protocol == protocol)
            && self.kind.is_none_or(|kind| route.kind == kind)
    }

    fn request(&self, family: IpFamily) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family.into();
        message.header.protocol = self.protocol.unwrap_or(0).into();
        message.header.kind = self.kind.map_or(0, u8::from).into();
        message.attributes.extend(self.table.map(RouteAttribute::Table));
        message.attributes.extend(self.index.map(RouteAttribute::Oif));
        RouteNetlinkMessage::GetRoute(message)
    }
}

impl Netlink {
    /// Reads the routes that the filter matches. Returns nothing for a link or table that does not exist.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and errors of the socket.
    pub fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, Error> {
        let mut found = Vec::new();
        for family in IpFamily::selected(filter.family) {
            let read = |message: Message<'_>| {
                Ok(Route::read(message)?.filter(|route| {
                    // The kernel dumps all families when it lacks the requested one.
                    IpFamily::of(route.destination.addr()) == family && filter.matches(route)
                }))
            };
            found.extend(none_if_gone(self.socket.dump_with("routes", &filter.request(family), read))?);
        }
        Ok(found)
    }

    /// Looks up the route of a packet from this host to an address, with link, gateway and source, like
    /// `ip route get`. The destination of the result is the address.
    ///
    /// # Errors
    /// [`Error::is_unreachable`] is true when there is no route.
    pub fn route_to(&mut self, address: IpAddr) -> Result<Route, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = IpFamily::of(address).into();
        message.header.destination_prefix_length = IpNet::from(address).max_prefix_len();
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let request = RouteNetlinkMessage::GetRoute(message);
        self.socket.query_with(format_args!("find the route to {address}"), &request, |message| {
            Route::read(message)?.ok_or_else(|| DecodeError::from("a route of another family"))
        })
    }
}

/// Finds the link in a list of next hops. Each is a `struct rtnexthop` (two bytes of length, one of flags, one of hops, four
/// of link index) followed by attributes (`linux/rtnetlink.h`).
fn first_link(mut hops: &[u8]) -> Option<u32> {
    /// `RTNH_F_DEAD` and `RTNH_F_LINKDOWN`.
    const DOWN: u8 = 1 | 16;
    /// `RTNH_ALIGNTO`.
    const ALIGNMENT: usize = 4;
    let mut first = None;
    while let Some((&[a, b, flags, _, c, d, e, f], _)) = hops.split_first_chunk::<8>() {
        let index = u32::from_ne_bytes([c, d, e, f]);
        if flags & DOWN == 0 {
            return Some(index);
        }
        first = first.or(Some(index));
        let length = usize::from(u16::from_ne_bytes([a, b])).max(8).next_multiple_of(ALIGNMENT);
        hops = hops.get(length..).unwrap_or_default();
    }
    first
}

/// Writes a gateway of the other family (`struct rtvia`: the family in two bytes, then the address).
fn write_via(gateway: Ipv6Addr, request: &mut RequestWriter<'_>) {
    let mut via = [0; 18];
    via[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
    via[2..].copy_from_slice(&gateway.octets());
    request.attribute(RTA_VIA, &via);
}

fn unspecified(family: IpFamily) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

impl From<u8> for RouteKind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            3 => Self::Broadcast,
            4 => Self::Anycast,
            5 => Self::Multicast,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            9 => Self::Throw,
            other => Self::Other(other),
        }
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => 1,
            RouteKind::Local => 2,
            RouteKind::Broadcast => 3,
            RouteKind::Anycast => 4,
            RouteKind::Multicast => 5,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Prohibit => 8,
            RouteKind::Throw => 9,
            RouteKind::Other(number) => number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::read_back;
    use crate::request_writer::append;
    use crate::rtm::RTM_NEWROUTE;

    fn encoded(route: &Route) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, RTM_NEWROUTE, 0, 1, |request| route.write(request));
        bytes
    }

    #[test]
    fn a_route_is_read_as_it_is_written() {
        let (v4, v6) = ("10.5.3.0/24".parse().unwrap(), "fd99:30:0:3::/64".parse().unwrap());
        let (gateway4, gateway6) = ("10.5.3.0".parse().unwrap(), "fd99:30:0:3::".parse().unwrap());
        for route in [
            Route::onlink(v4, gateway4, 7).with_metric(1),
            Route::onlink(v6, gateway6, 7).with_metric(u32::MAX),
            Route::onlink(v4, gateway6, 7),
            Route::by_gateway("0.0.0.0/0".parse().unwrap(), gateway4),
            Route::by_gateway("::/0".parse().unwrap(), gateway6),
            Route { table: 100_000, protocol: 99, ..Route::attached(v4, 7) },
            Route { table: 255, source: Some(gateway6), ..Route::attached(v6, 7) },
            Route { index: None, kind: RouteKind::Unreachable, ..Route::attached(v6, 7) },
        ] {
            assert_eq!(read_back(&encoded(&route), Route::read), Some(route));
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn an_overlay_route_is_written_byte_for_byte_as_flannel_does() {
        let route = Route::onlink("10.5.3.0/24".parse().unwrap(), "10.5.3.0".parse().unwrap(), 7);
        let bytes = encoded(&route);
        #[rustfmt::skip]
        let expected = [
            libc::AF_INET as u8, 24, 0, 0,
            254, 3, 0, 1,                   // main, boot, universe, unicast
            4, 0, 0, 0,                     // RTNH_F_ONLINK
            8, 0, 1, 0,  10, 5, 3, 0,       // RTA_DST
            8, 0, 5, 0,  10, 5, 3, 0,       // RTA_GATEWAY
            8, 0, 4, 0,  7, 0, 0, 0,        // RTA_OIF
        ];
        assert_eq!(bytes[16..], expected);
    }

    #[test]
    fn host_bits_of_a_destination_are_not_sent() {
        let route = Route::attached("10.5.3.7/24".parse().unwrap(), 7);
        let read = read_back(&encoded(&route), Route::read).unwrap();
        assert_eq!(read.destination, "10.5.3.0/24".parse().unwrap());
    }

    #[test]
    fn a_filter_matches_its_fields() {
        let route = Route::onlink("10.5.3.0/24".parse().unwrap(), "10.5.3.0".parse().unwrap(), 7);
        let exact = RouteFilter {
            family: Some(IpFamily::V4),
            index: Some(7),
            table: Some(254),
            protocol: Some(3),
            kind: Some(RouteKind::Unicast),
        };
        assert!(exact.matches(&route) && RouteFilter::default().matches(&route));
        for other in [
            RouteFilter { family: Some(IpFamily::V6), ..exact },
            RouteFilter { index: Some(8), ..exact },
            RouteFilter { table: Some(255), ..exact },
            RouteFilter { protocol: Some(4), ..exact },
            RouteFilter { kind: Some(RouteKind::Blackhole), ..exact },
        ] {
            assert!(!other.matches(&route), "{other:?}");
        }
    }

    #[test]
    fn the_first_next_hop_that_is_up_determines_the_link() {
        let hop = |flags: u8, index: u32, attributes: &[u8]| {
            let length = 8 + attributes.len() as u16;
            let head = [&length.to_ne_bytes()[..], &[flags, 0], &index.to_ne_bytes(), attributes].concat();
            [head, vec![0; attributes.len().next_multiple_of(4) - attributes.len()]].concat()
        };
        assert_eq!(first_link(&[hop(0, 2, b"12345"), hop(0, 3, b"")].concat()), Some(2));
        assert_eq!(first_link(&[hop(17, 2, b"12345"), hop(0, 3, b"")].concat()), Some(3));
        assert_eq!(first_link(&[hop(1, 2, b""), hop(16, 3, b"")].concat()), Some(2), "all are down");
        for cut in [&b""[..], &[9, 0, 0], &[0, 0, 1, 0, 2, 0, 0]] {
            assert_eq!(first_link(cut), None);
        }
        assert_eq!(first_link(&[255, 255, 1, 0, 2, 0, 0, 0]), Some(2), "a length beyond the end");
    }

    #[test]
    fn every_route_type_round_trips() {
        for number in 0..=u8::MAX {
            assert_eq!(u8::from(RouteKind::from(number)), number);
        }
    }
}
