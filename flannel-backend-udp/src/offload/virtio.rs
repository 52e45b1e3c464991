//! The header before each packet that is read from or written to the device: `struct virtio_net_hdr`,
//! `linux/virtio_net.h`. The device is told to use little endian on every machine (`TUNSETVNETLE`).

/// The header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VirtioHeader {
    /// Where a checksum is to be filled in, if one is: from where the sum goes, and where from there it is put. What is
    /// there already is the sum of the pseudo header.
    pub(crate) checksum: Option<(u16, u16)>,
    /// What the packet is to be cut into, if it is.
    pub(crate) gso: Option<Gso>,
    /// How many bytes of headers there are. The kernel may state more than there are, so it is only written.
    pub(crate) header_len: u16,
}

/// A packet that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gso {
    pub(crate) kind: GsoKind,
    /// Bytes of payload in each but the last.
    pub(crate) size: u16,
}

/// What the packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GsoKind {
    TcpV4,
    TcpV6,
    /// UDP datagrams, over either family.
    Udp,
}

/// The header's bytes.
pub(crate) const VIRTIO_HEADER: usize = 10;

// `linux/virtio_net.h`.
const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside the kind if the first segment has the flag CWR of TCP.
const GSO_ECN: u8 = 0x80;

impl VirtioHeader {
    /// Takes the header off a packet; `None` if there is none, or one of another kind.
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
