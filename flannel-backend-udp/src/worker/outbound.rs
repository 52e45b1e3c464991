//! Packets from the device to the network.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::rate_limit::RateLimit;
use super::{PacketQueue, PathFault, PathParts, Step};
use crate::counters::DropReason;
use crate::forward::{self, Burst, Outbox, Refusal};
use crate::offload::split::{MAX_PACKET, Segments};
use crate::offload::virtio::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::icmp::{self, IcmpError};
use crate::packet::{Header, IPV4_HEADER, IPV6_HEADER};
use crate::peers::CachedRouting;
use crate::sys::poll;

/// The most packets read from the device before a send. Large packets fill the outbox and are sent earlier; more small
/// packets would wait longer than a send takes.
const READS: usize = 64;

/// The longest wait for room in the send buffer. An unreachable host fills at most its neighbour entry's queue
/// (`unres_qlen_bytes`), and the buffer holds many of those.
const SEND_WAIT: Duration = Duration::from_millis(2);

/// How long a path MTU below the device's MTU is cached.
const PATH_MTU_TTL: Duration = Duration::from_secs(10);

/// The most cached path MTUs.
const MAX_PATH_MTUS: usize = 64;

/// Moves packets from the device to the sockets.
pub(super) struct Outbound<'a> {
    parts: &'a PathParts,
    view: CachedRouting,
    buffer: Box<[u8]>,
    outbox: Outbox,
    limit: RateLimit,
    narrow: Vec<PathMtu>,
    sends_bursts: bool,
}

/// Which bursts to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BurstSelection {
    All,
    /// Bursts that can't grow. Reads return a few packets more than a burst holds, and sending those few alone would cost
    /// as much as a whole burst.
    Full,
}

/// A path MTU below the device's MTU.
struct PathMtu {
    to: IpAddr,
    mtu: usize,
    until: Instant,
}

impl PacketQueue for Outbound<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.parts.tun.as_fd()
    }

    /// Reads and sends a bounded number of packets.
    fn step(&mut self) -> Result<Step, PathFault> {
        self.view.refresh();
        let (mut reads, mut bytes, mut may_be_more) = (0, 0, true);
        while reads < READS && may_be_more {
            match (&*self.parts.tun).read(&mut self.buffer) {
                Ok(len) => {
                    reads += 1;
                    bytes += len;
                    self.packet(len);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => may_be_more = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(PathFault::Device(format!("failed to read the device: {error}"))),
            }
            if self.outbox.is_worth_sending() {
                self.send(BurstSelection::Full);
            }
        }
        self.send(BurstSelection::All);
        self.parts.counters.was_read(reads as u64);
        Ok(Step { moved: reads, bytes, is_full: may_be_more })
    }

    fn closed(&self) -> PathFault {
        PathFault::Device("the device was removed".to_owned())
    }
}

impl<'a> Outbound<'a> {
    pub(super) fn new(parts: &'a PathParts, view: CachedRouting) -> Self {
        Self {
            parts,
            view,
            buffer: vec![0; VIRTIO_HEADER + MAX_PACKET].into_boxed_slice(),
            outbox: Outbox::new(),
            limit: RateLimit::new(Instant::now()),
            narrow: Vec::new(),
            sends_bursts: parts.offloads.send_bursts,
        }
    }

    /// Forwards one packet from the device, which may be a GSO packet.
    fn packet(&mut self, len: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Err(refusal) = self.forward(&mut buffer[..len]) {
            self.refuse(refusal, buffer.get(VIRTIO_HEADER..len).unwrap_or_default());
        }
        self.buffer = buffer;
    }

    fn forward(&mut self, bytes: &mut [u8]) -> Result<(), Refusal> {
        let malformed = Refusal { reason: DropReason::MalformedOut, icmp_error: None };
        let header = VirtioHeader::read(bytes).ok_or(malformed)?;
        let packet = bytes.get_mut(VIRTIO_HEADER..).ok_or(malformed)?;
        let hop = forward::outbound(self.view.routing(), packet)?;
        let mut segments = Segments::new(&header, packet).map_err(|_| malformed)?;
        loop {
            self.outbox.push(hop, &mut segments);
            if segments.left() == 0 {
                return Ok(());
            }
            if self.outbox.is_empty() {
                return Err(malformed);
            }
            self.send(BurstSelection::All);
        }
    }

    /// Drops and counts a packet, and sends an ICMP error if the refusal asks for one.
    fn refuse(&mut self, refusal: Refusal, packet: &[u8]) {
        self.parts.counters.dropped(refusal.reason, 1);
        if let Some(icmp_error) = refusal.icmp_error {
            self.send_icmp_error(icmp_error, packet);
        }
    }

    fn send_icmp_error(&mut self, icmp_error: IcmpError, packet: &[u8]) {
        let Some(header) = Header::read(packet) else { return };
        let Some(own) = self.view.routing().own(header.source) else { return };
        let mut message = [0; icmp_buffer()];
        let (_, room) = message.split_at_mut(VIRTIO_HEADER);
        let Ok(room) = room.try_into() else { return };
        let Some(len) = icmp::write(room, own, icmp_error, packet) else { return };
        if self.limit.allows(Instant::now()) {
            // A zeroed virtio header describes a single packet. ICMP errors are best effort.
            let _ = (&*self.parts.tun).write(&message[..VIRTIO_HEADER + len]);
        }
    }

    fn send(&mut self, part: BurstSelection) {
        if self.outbox.is_empty() {
            return;
        }
        let outbox = std::mem::replace(&mut self.outbox, Outbox::empty());
        let bursts = if part == BurstSelection::All { outbox.bursts() } else { outbox.full_bursts() };
        for burst in bursts {
            self.send_burst(&outbox, burst);
        }
        self.outbox = outbox;
        match part {
            BurstSelection::All => self.outbox.clear(),
            BurstSelection::Full => self.outbox.clear_full(),
        }
        self.outbox.max_segments = if self.sends_bursts { forward::MAX_SEGMENTS } else { 1 };
    }

    fn send_burst(&mut self, outbox: &Outbox, burst: &Burst) {
        let Some(to) = forward::address(self.view.routing(), burst.hop) else { return };
        let Some(socket) = self.socket(to) else { return };
        if !self.narrow.is_empty() && self.is_too_large(outbox, burst, to) {
            return self.send_one_by_one(outbox, burst, socket, to);
        }
        let mut pieces = [IoSlice::new(&[]); forward::MAX_SEGMENTS];
        let mut count = 0;
        for (slot, piece) in pieces.iter_mut().zip(outbox.pieces(burst)) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        let segment = (burst.packets > 1).then_some(burst.segment as u16);
        match send(socket, to, &pieces[..count], segment) {
            Ok(()) => self.count_sent(burst, burst.packets, burst.bytes, 1),
            Err(error) if segment.is_some() && is_about_bursts(&error) => {
                self.burst_refused(outbox, burst, to, &error);
                self.send_one_by_one(outbox, burst, socket, to);
            }
            Err(_) => self.count_lost(burst, burst.packets),
        }
    }

    fn send_one_by_one(&self, outbox: &Outbox, burst: &Burst, socket: &UdpSocket, to: SocketAddr) {
        let (mut packets, mut bytes) = (0, 0);
        for packet in outbox.packets(burst) {
            if send(socket, to, &[IoSlice::new(packet)], None).is_ok() {
                packets += 1;
                bytes += packet.len();
            }
        }
        self.count_sent(burst, packets, bytes, packets);
        self.count_lost(burst, burst.packets - packets);
    }

    fn count_sent(&self, burst: &Burst, packets: usize, bytes: usize, bursts: usize) {
        if let Some(hop) = self.view.routing().peers.hops().get(burst.hop) {
            hop.counters.sent_packets.add(packets as u64);
            hop.counters.sent_bytes.add(bytes as u64);
            hop.counters.sent_bursts.add(bursts as u64);
        }
    }

    fn count_lost(&self, burst: &Burst, packets: usize) {
        if packets == 0 {
            return;
        }
        self.parts.counters.dropped(DropReason::SendFailed, packets as u64);
        if let Some(hop) = self.view.routing().peers.hops().get(burst.hop) {
            hop.counters.send_errors.add(packets as u64);
        }
    }

    /// Returns the socket of an address family.
    fn socket(&self, to: SocketAddr) -> Option<&'a UdpSocket> {
        let parts: &'a PathParts = self.parts;
        let same =
            |socket: &UdpSocket| socket.local_addr().is_ok_and(|local| local.is_ipv4() == to.is_ipv4());
        match &parts.sockets[..] {
            [only] => Some(&**only),
            sockets => sockets.iter().find(|socket| same(socket)).map(|socket| &**socket),
        }
    }

    /// Determines why the kernel refused a burst: the path MTU is smaller than the device's, or bursts aren't supported.
    fn burst_refused(&mut self, outbox: &Outbox, burst: &Burst, to: SocketAddr, error: &io::Error) {
        let mtu = path_mtu(to).unwrap_or(u32::MAX) as usize;
        if burst.segment + overhead(to) > mtu {
            tracing::debug!(peer = %to, mtu, "the path MTU is smaller than the MTU of the device");
            self.narrow.retain(|path| path.to != to.ip());
            self.narrow.truncate(MAX_PATH_MTUS - 1);
            self.narrow.push(PathMtu { to: to.ip(), mtu, until: Instant::now() + PATH_MTU_TTL });
            self.report_path_mtu(outbox, burst, to, mtu);
        } else {
            tracing::info!(%error, "the kernel rejects UDP_SEGMENT; sending datagrams one by one");
            self.sends_bursts = false;
        }
    }

    /// Returns whether a burst exceeds a cached path MTU, and if so sends an ICMP error.
    fn is_too_large(&mut self, outbox: &Outbox, burst: &Burst, to: SocketAddr) -> bool {
        let now = Instant::now();
        self.narrow.retain(|path| path.until > now);
        let Some(path) = self.narrow.iter().find(|path| path.to == to.ip()) else { return false };
        let mtu = path.mtu;
        let is_too_large = burst.segment + overhead(to) > mtu;
        if is_too_large {
            self.report_path_mtu(outbox, burst, to, mtu);
        }
        is_too_large
    }

    /// Sends an ICMP error with the path MTU to the source of packets that must not be fragmented. The packets are still sent,
    /// in datagrams that the kernel fragments.
    fn report_path_mtu(&mut self, outbox: &Outbox, burst: &Burst, to: SocketAddr, mtu: usize) {
        let fits = mtu.saturating_sub(overhead(to));
        let must_not_be_cut =
            |packet: &&[u8]| Header::read(packet).is_some_and(|header| header.dont_fragment);
        let first = outbox.packets(burst).find(|packet| packet.len() > fits && must_not_be_cut(packet));
        if let Some(packet) = first {
            self.send_icmp_error(IcmpError::TooBig(fits as u16), packet);
        }
    }
}

const fn icmp_buffer() -> usize {
    VIRTIO_HEADER + size_of::<icmp::Message>()
}

/// Sends, and waits briefly if the send buffer is full.
fn send(socket: &UdpSocket, to: SocketAddr, pieces: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
    for attempt in 0.. {
        match crate::sys::socket::send(socket, to, pieces, segment) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && attempt == 0 => {
                poll::wait_writable(socket.as_fd(), SEND_WAIT)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether an error may concern the burst rather than its datagrams (`udp_send_skb` in `net/ipv4/udp.c`).
fn is_about_bursts(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// Returns the bytes of a datagram's headers.
fn overhead(to: SocketAddr) -> usize {
    8 + if to.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// Returns the kernel's path MTU to a peer.
fn path_mtu(to: SocketAddr) -> io::Result<u32> {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    crate::sys::socket::path_mtu(&socket)
}
