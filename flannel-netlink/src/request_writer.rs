//! Requests that are written straight into the buffer they are sent from.
//!
//! For the objects of which there are thousands: to put each one together as a message of the typed crates first, with
//! its list of attributes and their values, costs more than a tenth of what the kernel needs to carry it out.

use std::net::IpAddr;

use netlink_packet_core::Emitable;

/// A request that is being written.
#[derive(Debug)]
pub(crate) struct RequestWriter<'a> {
    buffer: &'a mut Vec<u8>,
}

/// Appends a request of a kind (`RTM_*`) to a buffer that may hold others already.
pub(crate) fn append(
    buffer: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    content: impl FnOnce(&mut RequestWriter<'_>),
) {
    let start = buffer.len();
    // `struct nlmsghdr`: the length is known at the end, and the kernel knows who sends.
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&kind.to_ne_bytes());
    buffer.extend_from_slice(&flags.to_ne_bytes());
    buffer.extend_from_slice(&sequence.to_ne_bytes());
    buffer.extend_from_slice(&[0; 4]);
    content(&mut RequestWriter { buffer });
    // No request is near 4 GiB.
    let len = (buffer.len() - start) as u32;
    buffer[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

impl RequestWriter<'_> {
    /// Writes the fixed part, as the kernel lays it out.
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Writes the fixed part, such as `struct rtmsg`.
    pub(crate) fn header(&mut self, header: &impl Emitable) {
        let start = self.buffer.len();
        self.buffer.resize(start + header.buffer_len(), 0);
        header.emit(&mut self.buffer[start..]);
    }

    /// Writes an attribute (`struct nlattr`, its value, and what fills it up to four bytes).
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        // No value here is longer than an address.
        let len = (4 + value.len()) as u16;
        self.buffer.extend_from_slice(&len.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    /// Writes an attribute that is an address.
    pub(crate) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.attribute(kind, &address.octets()),
            IpAddr::V6(address) => self.attribute(kind, &address.octets()),
        }
    }
}
