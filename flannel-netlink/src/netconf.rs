//! Forwarding settings of a link or of all links.

use netlink_packet_core::{DecodeError, ErrorContext, NlasIterator, parse_i32};
use netlink_packet_route::AddressFamily;

use crate::error::Error;
use crate::family::IpFamily;
use crate::message::{EncodeRequest, Message};
use crate::netlink::Netlink;
use crate::request_writer::append;
use crate::rtm::RTM_GETNETCONF;

// `enum` in `linux/netconf.h`.
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: i32 = -1;
/// `sizeof(struct netconfmsg)`, aligned.
const HEADER_LEN: usize = 4;

/// The forwarding setting in an `RTM_NEWNETCONF`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Forwarding {
    pub(crate) family: IpFamily,
    /// The link; `None` means all links.
    pub(crate) index: Option<u32>,
    pub(crate) on: bool,
}

impl Forwarding {
    /// Reads a message; `None` if it has no forwarding setting, or is about the defaults of future links.
    pub(crate) fn read(message: Message<'_>) -> Result<Option<Self>, DecodeError> {
        let family = match message.payload.first().map(|family| libc::c_int::from(*family)) {
            Some(libc::AF_INET) => IpFamily::V4,
            Some(libc::AF_INET6) => IpFamily::V6,
            _ => return Ok(None),
        };
        let (mut index, mut forwarding) = (None, None);
        for attribute in NlasIterator::new(message.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let attribute = attribute?;
            match attribute.kind() {
                NETCONFA_IFINDEX => index = Some(parse_i32(attribute.value()).context("NETCONFA_IFINDEX")?),
                NETCONFA_FORWARDING => {
                    forwarding = Some(parse_i32(attribute.value()).context("NETCONFA_FORWARDING")?);
                }
                _ => {}
            }
        }
        Ok(index.zip(forwarding).and_then(|(index, forwarding)| {
            // The other negative number stands for the defaults of future links.
            let index = match index {
                NETCONFA_IFINDEX_ALL => None,
                index => Some(u32::try_from(index).ok()?),
            };
            Some(Self { family, index, on: forwarding != 0 })
        }))
    }
}

/// A request for the settings of one link, or of all.
struct NetconfRequest {
    family: IpFamily,
    index: i32,
}

impl EncodeRequest for NetconfRequest {
    fn append(&self, buffer: &mut Vec<u8>, flags: u16, sequence: u32) {
        append(buffer, RTM_GETNETCONF, flags, sequence, |request| {
            request.fixed(&[AddressFamily::from(self.family).into(), 0, 0, 0]);
            request.attribute(NETCONFA_IFINDEX, &self.index.to_ne_bytes());
        });
    }
}

impl Netlink {
    /// Returns whether the host forwards packets of a family that arrive on a link, or on any link without a setting of its
    /// own (`net.ipv4.ip_forward`, `net.ipv6.conf.all.forwarding`).
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is no such link, or the kernel has no IPv6.
    pub fn is_forwarding(&mut self, family: IpFamily, index: Option<u32>) -> Result<bool, Error> {
        let links = index.map_or_else(|| "all links".to_owned(), |index| format!("link {index}"));
        // Indexes are at most i32::MAX.
        let index = index.map_or(NETCONFA_IFINDEX_ALL, |index| i32::try_from(index).unwrap_or(i32::MAX));
        let read = |message: Message<'_>| {
            Forwarding::read(message)?.ok_or_else(|| DecodeError::from("no forwarding setting"))
        };
        let object = format_args!("read whether {links} forward {family}");
        self.socket
            .query_with(object, &NetconfRequest { family, index }, read)
            .map(|forwarding| forwarding.on)
    }
}
