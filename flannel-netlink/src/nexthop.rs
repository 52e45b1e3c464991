//! Nexthop objects, which routes refer to by ID (`linux/nexthop.h`).

use netlink_packet_core::DecodeError;

use crate::attributes::{AttributeWriter, attribute};
use crate::error::Error;
use crate::message::{Message, RawMessage};
use crate::netlink::Netlink;
use crate::rtm::RTM_GETNEXTHOP;

/// `sizeof(struct nhmsg)`: family, scope, protocol and a reserved byte, then the flags.
const HEADER_LEN: usize = 8;
/// `sizeof(struct nexthop_grp)`: the ID, the weight and reserved bytes.
const GROUP_ENTRY_LEN: usize = 8;

const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;

/// A nexthop object.
#[derive(Debug, Default, Eq, PartialEq)]
struct Nexthop {
    is_down: bool,
    link: Option<u32>,
    /// The IDs of its members, if it is a group.
    members: Vec<u32>,
}

impl Nexthop {
    fn read(payload: &[u8]) -> Result<Self, DecodeError> {
        /// `RTNH_F_DEAD` and `RTNH_F_LINKDOWN`.
        const DOWN: u32 = 1 | 16;
        let (header, rest) =
            payload.split_first_chunk::<HEADER_LEN>().ok_or("a nexthop message without a header")?;
        let [.., a, b, c, d] = *header;
        let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let group = attribute(rest, NHA_GROUP).unwrap_or_default();
        Ok(Self {
            is_down: u32::from_ne_bytes([a, b, c, d]) & DOWN != 0,
            link: attribute(rest, NHA_OIF).and_then(number),
            members: group.chunks(GROUP_ENTRY_LEN).filter_map(number).collect(),
        })
    }
}

impl Netlink {
    /// Returns the index of the link of a nexthop object. Of a group it is that of the first member that is up or, if all
    /// are down, that of the first. `None` if the object has no link, like one that drops packets.
    ///
    /// # Errors
    /// Errors of the kernel, for example if there is no such object.
    pub fn nexthop_link(&mut self, id: u32) -> Result<Option<u32>, Error> {
        let nexthop = self.nexthop(id)?;
        let mut first = nexthop.link;
        for member in nexthop.members {
            let member = self.nexthop(member)?;
            if member.link.is_some() && !member.is_down {
                return Ok(member.link);
            }
            first = first.or(member.link);
        }
        Ok(first)
    }

    fn nexthop(&mut self, id: u32) -> Result<Nexthop, Error> {
        let attributes = AttributeWriter::new().bytes(NHA_ID, &id.to_ne_bytes()).finish();
        let payload = [&[0; HEADER_LEN][..], &attributes].concat();
        let request = RawMessage { message_type: RTM_GETNEXTHOP, payload };
        self.socket.query_with(format_args!("read nexthop {id}"), &request, |message: Message<'_>| {
            Nexthop::read(message.payload)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nexthop_and_a_group_are_read() {
        let message = |flags: u32, attributes: AttributeWriter| {
            [&[2, 0, 0, 0][..], &flags.to_ne_bytes(), &attributes.finish()].concat()
        };
        let single = message(17, AttributeWriter::new().bytes(NHA_OIF, &7u32.to_ne_bytes()));
        let expected = Nexthop { is_down: true, link: Some(7), members: Vec::new() };
        assert_eq!(Nexthop::read(&single).unwrap(), expected);
        let entry = |id: u32| [&id.to_ne_bytes()[..], &[0; 4]].concat();
        let group = message(0, AttributeWriter::new().bytes(NHA_GROUP, &[entry(3), entry(4)].concat()));
        let expected = Nexthop { members: vec![3, 4], ..Nexthop::default() };
        assert_eq!(Nexthop::read(&group).unwrap(), expected);
        assert!(Nexthop::read(&[0; 7]).is_err());
    }
}
