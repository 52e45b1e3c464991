//! Netlink attributes: reading and writing `struct nlattr` without a schema.

use netlink_packet_core::{NlasIterator, parse_string};

/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: without the flags for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;

/// Iterates over the attributes in a payload, or in a nested attribute, with their types.
///
/// Stops at the first attribute that cannot be read.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .map_while(Result::ok)
        .map(|attribute| (attribute.kind() & TYPE_MASK, value_of(attribute.into_inner())))
}

/// Returns the value of the first attribute of a type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Returns the text in the first attribute of a type.
pub(crate) fn text(bytes: &[u8], kind: u16) -> Option<String> {
    parse_string(attribute(bytes, kind)?).ok()
}

/// Returns the value behind an attribute's header of length and type.
fn value_of(attribute: &[u8]) -> &[u8] {
    let length =
        attribute.get(..2).map_or(0, |length| usize::from(u16::from_ne_bytes([length[0], length[1]])));
    attribute.get(4..length).unwrap_or_default()
}

/// Writes attributes one after the other.
///
/// ```
/// use flannel_netlink::AttributeWriter;
///
/// let bytes = AttributeWriter::new().string(2, "ethtool").bytes(1, &7_u32.to_ne_bytes()).finish();
/// assert_eq!(bytes.len(), 12 + 8);
/// ```
#[derive(Clone, Debug, Default)]
pub struct AttributeWriter {
    buffer: Vec<u8>,
}

impl AttributeWriter {
    /// Starts without attributes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an attribute. A value longer than 65,531 bytes is cut.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let value = &value[..value.len().min(usize::from(u16::MAX) - 4)];
        self.buffer.extend((value.len() as u16 + 4).to_ne_bytes());
        self.buffer.extend(kind.to_ne_bytes());
        self.buffer.extend(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a text, with the NUL that ends it.
    #[must_use]
    pub fn string(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Appends a nested attribute (`NLA_F_NESTED`).
    #[must_use]
    pub fn nested(self, kind: u16, attributes: Self) -> Self {
        self.bytes(kind | NESTED, &attributes.buffer)
    }

    /// Returns the attributes as they go on the wire.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = AttributeWriter::new().bytes(9, &[1, 2, 3]).bytes(10, &[]);
        let bytes = AttributeWriter::new().string(2, "nlctrl").nested(7, inner).bytes(1, &[4; 4]).finish();
        assert_eq!(text(&bytes, 2).as_deref(), Some("nlctrl"));
        let nested = attribute(&bytes, 7).expect("nested");
        assert_eq!(attributes(nested).collect::<Vec<_>>(), [(9, &[1, 2, 3][..]), (10, &[])]);
        assert_eq!(attribute(&bytes, 1), Some(&[4; 4][..]));
        assert_eq!(attribute(&bytes, 3), None);
        for length in 0..bytes.len() {
            let _ = attributes(&bytes[..length]).count();
        }
    }
}
