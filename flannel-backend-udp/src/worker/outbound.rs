//! From the device to the network.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::limit::Limit;
use super::{Fault, Parts, Path, Step};
use crate::counters::DropReason;
use crate::forward::{self, Burst, Outbox, Refusal};
use crate::offload::split::{MAX_PACKET, Segments};
use crate::offload::virtio::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::icmp::{self, Trouble};
use crate::packet::{Header, IPV4_HEADER, IPV6_HEADER};
use crate::peers::View;
use crate::sys::poll;

/// How many packets are taken from the device before what there is is sent. Large packets are sent earlier, when the
/// outbox is full; more small ones would wait longer than a send takes.
const READS: usize = 64;

/// How long a full send buffer is waited for. A host that is not reached fills at most its neighbour entry's queue
/// (`unres_qlen_bytes`), of which the buffer holds many.
const FULL: Duration = Duration::from_millis(2);

/// How long a path that is narrower than the device is believed to be so.
const NARROW: Duration = Duration::from_secs(10);

/// So many narrow paths are remembered.
const NARROW_PATHS: usize = 64;

/// The way from the device to the sockets.
pub(super) struct Outward<'a> {
    parts: &'a Parts,
    view: View,
    buffer: Box<[u8]>,
    outbox: Outbox,
    limit: Limit,
    narrow: Vec<NarrowPath>,
    sends_bursts: bool,
}

/// What is sent of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    /// What nothing can be added to. A read is of some packets more than a burst holds, and those few would cost as much
    /// by themselves as a burst does.
    Full,
}

/// A path that carries less than the device.
struct NarrowPath {
    to: IpAddr,
    mtu: usize,
    until: Instant,
}

impl Path for Outward<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.parts.tun.as_fd()
    }

    /// Takes what is there, at most so much that it is sent soon.
    fn step(&mut self) -> Result<Step, Fault> {
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
                Err(error) => return Err(Fault::Device(format!("the device cannot be read: {error}"))),
            }
            if self.outbox.is_worth_sending() {
                self.send(Part::Full);
            }
        }
        self.send(Part::All);
        self.parts.counters.was_read(reads as u64);
        Ok(Step { moved: reads, bytes, is_full: may_be_more })
    }

    fn over(&self) -> Fault {
        Fault::Device("the device is over".to_owned())
    }
}

impl<'a> Outward<'a> {
    pub(super) fn new(parts: &'a Parts, view: View) -> Self {
        Self {
            parts,
            view,
            buffer: vec![0; VIRTIO_HEADER + MAX_PACKET].into_boxed_slice(),
            outbox: Outbox::new(),
            limit: Limit::new(Instant::now()),
            narrow: Vec::new(),
            sends_bursts: parts.offloads.send_bursts,
        }
    }

    /// Takes one packet from the device, which may stand for several.
    fn packet(&mut self, len: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Err(refusal) = self.forward(&mut buffer[..len]) {
            self.refuse(refusal, buffer.get(VIRTIO_HEADER..len).unwrap_or_default());
        }
        self.buffer = buffer;
    }

    fn forward(&mut self, bytes: &mut [u8]) -> Result<(), Refusal> {
        let malformed = Refusal { reason: DropReason::MalformedOut, trouble: None };
        let header = VirtioHeader::read(bytes).ok_or(malformed)?;
        let packet = bytes.get_mut(VIRTIO_HEADER..).ok_or(malformed)?;
        let hop = forward::outward(self.view.routing(), packet)?;
        let mut segments = Segments::new(&header, packet).map_err(|_| malformed)?;
        loop {
            self.outbox.push(hop, &mut segments);
            if segments.left() == 0 {
                return Ok(());
            }
            if self.outbox.is_empty() {
                return Err(malformed);
            }
            self.send(Part::All);
        }
    }

    /// Drops a packet, counts it, and tells its source if that is of use.
    fn refuse(&mut self, refusal: Refusal, packet: &[u8]) {
        self.parts.counters.dropped(refusal.reason, 1);
        if let Some(trouble) = refusal.trouble {
            self.complain(trouble, packet);
        }
    }

    fn complain(&mut self, trouble: Trouble, packet: &[u8]) {
        let Some(header) = Header::read(packet) else { return };
        let Some(own) = self.view.routing().own(header.source) else { return };
        let mut message = [0; icmp_buffer()];
        let (_, room) = message.split_at_mut(VIRTIO_HEADER);
        let Ok(room) = room.try_into() else { return };
        let Some(len) = icmp::write(room, own, trouble, packet) else { return };
        if self.limit.allows(Instant::now()) {
            // The header of the device is all zeroes for a packet that is just itself. One that it does not take is
            // one error message less.
            let _ = (&*self.parts.tun).write(&message[..VIRTIO_HEADER + len]);
        }
    }

    fn send(&mut self, part: Part) {
        if self.outbox.is_empty() {
            return;
        }
        let outbox = std::mem::replace(&mut self.outbox, Outbox::empty());
        let bursts = if part == Part::All { outbox.bursts() } else { outbox.full_bursts() };
        for burst in bursts {
            self.send_burst(&outbox, burst);
        }
        self.outbox = outbox;
        match part {
            Part::All => self.outbox.clear(),
            Part::Full => self.outbox.clear_full(),
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

    /// The socket of the family of an address.
    fn socket(&self, to: SocketAddr) -> Option<&'a UdpSocket> {
        let parts: &'a Parts = self.parts;
        let same =
            |socket: &UdpSocket| socket.local_addr().is_ok_and(|local| local.is_ipv4() == to.is_ipv4());
        match &parts.sockets[..] {
            [only] => Some(&**only),
            sockets => sockets.iter().find(|socket| same(socket)).map(|socket| &**socket),
        }
    }

    /// Finds out why the kernel refuses a burst: because the path to the peer is narrower than the device, or because it
    /// cannot send bursts at all.
    fn burst_refused(&mut self, outbox: &Outbox, burst: &Burst, to: SocketAddr, error: &io::Error) {
        let mtu = path_mtu(to).unwrap_or(u32::MAX) as usize;
        if burst.segment + overhead(to) > mtu {
            tracing::debug!(peer = %to, mtu, "the path is narrower than the device");
            self.narrow.retain(|path| path.to != to.ip());
            self.narrow.truncate(NARROW_PATHS - 1);
            self.narrow.push(NarrowPath { to: to.ip(), mtu, until: Instant::now() + NARROW });
            self.tell_size(outbox, burst, to, mtu);
        } else {
            tracing::info!(%error, "the kernel does not send bursts: datagrams are sent one by one from now on");
            self.sends_bursts = false;
        }
    }

    /// Tells whether a burst is known not to fit its path, and then its source, too.
    fn is_too_large(&mut self, outbox: &Outbox, burst: &Burst, to: SocketAddr) -> bool {
        let now = Instant::now();
        self.narrow.retain(|path| path.until > now);
        let Some(path) = self.narrow.iter().find(|path| path.to == to.ip()) else { return false };
        let mtu = path.mtu;
        let is_too_large = burst.segment + overhead(to) > mtu;
        if is_too_large {
            self.tell_size(outbox, burst, to, mtu);
        }
        is_too_large
    }

    /// Tells the source of packets that must not be cut how large they may be. They are sent all the same, in datagrams
    /// that the kernel cuts.
    fn tell_size(&mut self, outbox: &Outbox, burst: &Burst, to: SocketAddr, mtu: usize) {
        let fits = mtu.saturating_sub(overhead(to));
        let must_not_be_cut =
            |packet: &&[u8]| Header::read(packet).is_some_and(|header| header.dont_fragment);
        let first = outbox.packets(burst).find(|packet| packet.len() > fits && must_not_be_cut(packet));
        if let Some(packet) = first {
            self.complain(Trouble::TooBig(fits as u16), packet);
        }
    }
}

const fn icmp_buffer() -> usize {
    VIRTIO_HEADER + size_of::<icmp::Message>()
}

/// Sends, and waits a little if the buffer is full.
fn send(socket: &UdpSocket, to: SocketAddr, pieces: &[IoSlice<'_>], segment: Option<u16>) -> io::Result<()> {
    for attempt in 0.. {
        match crate::sys::socket::send(socket, to, pieces, segment) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && attempt == 0 => {
                poll::wait_writable(socket.as_fd(), FULL)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether an error may be about the burst and not about the datagrams in it (`udp_send_skb` in `net/ipv4/udp.c`).
fn is_about_bursts(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// What the headers of a datagram take.
fn overhead(to: SocketAddr) -> usize {
    8 + if to.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// Asks the kernel what the path to a peer carries.
fn path_mtu(to: SocketAddr) -> io::Result<u32> {
    let any = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    crate::sys::socket::path_mtu(&socket)
}
