//! The header of each packet read from or written to the device: `struct virtio_net_hdr` of `linux/virtio_net.h`, in
//! little endian on every machine (`TUNSETVNETLE`).

/// A parsed virtio header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VirtioHeader {
    /// The offsets of a partial checksum, if there is one: the start of the sum, and the field relative to it. The field
    /// holds the pseudo-header sum.
    pub(crate) checksum: Option<(u16, u16)>,
    /// How to segment the packet, if at all.
    pub(crate) gso: Option<Gso>,
    /// Bytes of headers. Only written: the value that the kernel states can be too large.
    pub(crate) header_len: u16,
}

/// The segmentation of a GSO packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gso {
    pub(crate) kind: GsoKind,
    /// Payload bytes of each segment except the last.
    pub(crate) size: u16,
}

/// The protocol of the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GsoKind {
    TcpV4,
    TcpV6,
    /// UDP datagrams, over either family.
    Udp,
}

/// Bytes of the header.
pub(crate) const VIRTIO_HEADER: usize = 10;

// `linux/virtio_net.h`.
const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set with the kind if the first segment has the TCP flag CWR.
const GSO_ECN: u8 = 0x80;

impl VirtioHeader {
    /// Parses the header of a packet; `None` if it is missing or of an unknown kind.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; VIRTIO_HEADER] = bytes.first_chunk()?;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::TcpV4),
            GSO_TCPV6 => Some(GsoKind::TcpV6),
            GSO_UDP_L4 => Some(GsoKind::Udp),
            _ => return None,
        };
        Some(Self {
            checksum: (header[0] & F_NEEDS_CSUM != 0).then(|| (word(6), word(8))),
            gso: kind.map(|kind| Gso { kind, size: word(4) }),
            header_len: word(2),
        })
    }

    /// Writes the header.
    pub(crate) fn to_bytes(self) -> [u8; VIRTIO_HEADER] {
        let mut header = [0; VIRTIO_HEADER];
        let mut set = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        if let Some((start, offset)) = self.checksum {
            set(6, start);
            set(8, offset);
        }
        if let Some(gso) = self.gso {
            set(4, gso.size);
        }
        set(2, self.header_len);
        header[0] = if self.checksum.is_some() { F_NEEDS_CSUM } else { 0 };
        header[1] = match self.gso.map(|gso| gso.kind) {
            None => GSO_NONE,
            Some(GsoKind::TcpV4) => GSO_TCPV4,
            Some(GsoKind::TcpV6) => GSO_TCPV6,
            Some(GsoKind::Udp) => GSO_UDP_L4,
        };
        header
    }
}
