//! Encodes requests directly into the send buffer.
//!
//! There are thousands of routes, neighbours and forwarding entries. Building each as a message of the typed crates first
//! would add more than a tenth to the time that the kernel takes to execute it.

use std::net::IpAddr;

use netlink_packet_core::Emitable;

/// Writes the body of a request.
#[derive(Debug)]
pub(crate) struct RequestWriter<'a> {
    buffer: &'a mut Vec<u8>,
}

/// Appends a request of a type (`RTM_*`) to a buffer that may hold others.
pub(crate) fn append(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    content: impl FnOnce(&mut RequestWriter<'_>),
) {
    let start = buffer.len();
    // `struct nlmsghdr`: the length is filled in at the end, and the kernel fills in the sender.
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&[0; 4]);
    content(&mut RequestWriter { buffer });
    // A request is far smaller than 4 GiB.
    let len = (buffer.len() - start) as u32;
    buffer[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

impl RequestWriter<'_> {
    /// Writes bytes in the layout of the kernel.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Writes a header such as `struct rtmsg`.
    pub(crate) fn header(&mut self, header: &impl Emitable) {
        let start = self.buffer.len();
        self.buffer.resize(start + header.buffer_len(), 0);
        header.emit(&mut self.buffer[start..]);
    }

    /// Writes an attribute (`struct nlattr`, the value, and padding to four bytes).
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        // The longest value is an address.
        let len = (4 + value.len()) as u16;
        self.buffer.extend_from_slice(&len.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// Writes an address attribute.
    pub(crate) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }
}
