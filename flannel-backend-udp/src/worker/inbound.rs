//! Packets from the network to the device.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::rate_limit::RateLimit;
use super::{PacketQueue, PathFault, PathParts, Step};
use crate::counters::DropReason;
use crate::forward::{self, Refusal};
use crate::offload::coalesce::{Coalescer, Joined, PIECES};
use crate::offload::split::{MAX_PACKET, Segments};
use crate::offload::virtio::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::icmp::{self, IcmpError};
use crate::packet::{Header, decrement_ttl};
use crate::peers::CachedRouting;
use crate::sys::socket::{Inbox, Received};

/// After this many consecutive errors without a datagram the socket counts as broken.
const ERRORS: u32 = 100;

/// Moves packets from one socket to the device.
pub(super) struct Inbound<'a> {
    parts: &'a PathParts,
    socket: &'a UdpSocket,
    inbox: Inbox,
    /// Consecutive errors of the socket.
    errors: u32,
    view: CachedRouting,
    coalescer: Coalescer,
    limit: RateLimit,
}

impl PacketQueue for Inbound<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn step(&mut self) -> Result<Step, PathFault> {
        // Taken out, because `self` is borrowed below.
        let mut inbox = std::mem::replace(&mut self.inbox, Inbox::empty());
        let received = inbox.receive(self.socket);
        if received.is_ok() {
            self.errors = 0;
            self.burst(&inbox);
        }
        self.inbox = inbox;
        match received {
            Ok(()) => {
                Ok(Step { moved: self.inbox.len(), bytes: self.inbox.bytes(), is_full: self.inbox.is_full() })
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(Step::default())
            }
            // ICMP errors are reported once each and don't concern the socket.
            Err(_) if self.errors < ERRORS => {
                self.errors += 1;
                Ok(Step::default())
            }
            Err(error) => Err(PathFault::Sockets(format!("failed to read the socket: {error}"))),
        }
    }

    fn closed(&self) -> PathFault {
        PathFault::Sockets("the socket was shut down".to_owned())
    }
}

impl<'a> Inbound<'a> {
    pub(super) fn new(parts: &'a PathParts, socket: &'a UdpSocket, view: CachedRouting) -> Self {
        let mut coalescer = Coalescer::new();
        coalescer.joins_tcp = parts.offloads.device_tcp;
        coalescer.joins_udp = parts.offloads.device_udp;
        let limit = RateLimit::new(Instant::now());
        Self { parts, socket, inbox: Inbox::new(), errors: 0, view, coalescer, limit }
    }

    /// Forwards everything in the inbox.
    fn burst(&mut self, inbox: &Inbox) {
        self.view.refresh();
        for message in inbox.iter() {
            self.message(&message, inbox.buffer());
        }
        self.write(inbox.buffer());
    }

    /// Forwards the datagrams of one message, which have one sender and lie in `buffer`.
    fn message(&mut self, message: &Received<'_>, buffer: &[u8]) {
        let from = message.from.ip();
        let count = message.bytes.len().div_ceil(message.segment.max(1)).max(1);
        if self.view.routing().peers.by_public(from).is_none() {
            return self.parts.counters.dropped(DropReason::Stranger, count as u64);
        }
        // Consecutive packets mostly have the same source.
        let mut known: Option<(IpAddr, usize)> = None;
        let mut accepted = AcceptedCounts::default();
        let mut start = message.start;
        // A datagram may be empty.
        let empty = std::iter::once(message.bytes).filter(|bytes| bytes.is_empty());
        for datagram in message.bytes.chunks(message.segment.max(1)).chain(empty) {
            match forward::inbound(self.view.routing(), from, datagram, known) {
                Ok((source, hop, len)) => {
                    if known.is_none_or(|(_, before)| before != hop) {
                        self.count(known, &mut accepted);
                    }
                    known = Some((source, hop));
                    accepted.packets += 1;
                    accepted.bytes += len as u64;
                    self.take(buffer, start..start + len);
                }
                Err(refusal) => self.refuse(refusal, from, datagram),
            }
            start += datagram.len();
        }
        self.count(known, &mut accepted);
    }

    fn take(&mut self, buffer: &[u8], packet: Range<usize>) {
        if !self.coalescer.has_room() {
            self.write(buffer);
        }
        self.coalescer.push(buffer, packet);
    }

    fn count(&self, known: Option<(IpAddr, usize)>, accepted: &mut AcceptedCounts) {
        let accepted = std::mem::take(accepted);
        if let Some(hop) = known.and_then(|(_, hop)| self.view.routing().peers.hops().get(hop)) {
            hop.counters.received_packets.add(accepted.packets);
            hop.counters.received_bytes.add(accepted.bytes);
        }
    }

    /// Writes everything to the device.
    fn write(&mut self, buffer: &[u8]) {
        let (mut writes, mut failed, mut refuses) = (0, 0, false);
        let joins = self.coalescer.joins_tcp || self.coalescer.joins_udp;
        for joined in self.coalescer.finish(buffer) {
            writes += 1;
            match write(&self.parts.tun, joined.parts()) {
                Ok(()) => {}
                Err(error) if joins && error.raw_os_error() == Some(libc::EINVAL) && joined.is_joined() => {
                    refuses = true;
                    failed += write_one_by_one(&self.parts.tun, joined);
                }
                Err(_) => failed += 1,
            }
        }
        self.parts.counters.was_written(writes);
        if failed > 0 {
            self.parts.counters.dropped(DropReason::WriteFailed, failed);
        }
        if refuses {
            tracing::info!("the device rejects coalesced packets; writing packets one by one");
            (self.coalescer.joins_tcp, self.coalescer.joins_udp) = (false, false);
        }
    }

    /// Drops and counts a peer's datagram, and sends an ICMP error if the refusal asks for one.
    fn refuse(&mut self, refusal: Refusal, from: IpAddr, datagram: &[u8]) {
        self.parts.counters.dropped(refusal.reason, 1);
        if let Some(peer) = self.view.routing().peers.by_public(from) {
            peer.counters.refused_packets.add(1);
        }
        if let Some(icmp_error) = refusal.icmp_error {
            self.send_icmp_error(icmp_error, datagram);
        }
    }

    /// Sends an ICMP error to a packet's source, through its peer.
    fn send_icmp_error(&mut self, icmp_error: IcmpError, packet: &[u8]) {
        let routing = self.view.routing();
        let Some(header) = Header::read(packet) else { return };
        let Some(own) = routing.own(header.source) else { return };
        let Some(hop) = routing.peers.lookup(header.source) else { return };
        let Some(to) = forward::address(routing, hop) else { return };
        let mut message = [0; size_of::<icmp::Message>()];
        let Some(len) = icmp::write(&mut message, own, icmp_error, packet) else { return };
        decrement_ttl(&mut message);
        if self.limit.allows(Instant::now()) {
            // ICMP errors are best effort.
            let _ = crate::sys::socket::send(self.socket, to, &[IoSlice::new(&message[..len])], None);
        }
    }
}

#[derive(Default)]
struct AcceptedCounts {
    packets: u64,
    bytes: u64,
}

fn write<'a>(mut tun: &File, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut slices = [IoSlice::new(&[]); PIECES + 1];
    let mut count = 0;
    for (slot, part) in slices.iter_mut().zip(parts) {
        *slot = IoSlice::new(part);
        count += 1;
    }
    loop {
        match tun.write_vectored(&slices[..count]) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Splits a coalesced packet and writes the segments; returns the number of failed writes.
fn write_one_by_one(tun: &File, joined: Joined<'_>) -> u64 {
    let bytes = joined.parts().collect::<Vec<_>>().concat();
    let Some(header) = VirtioHeader::read(&bytes) else { return 1 };
    let Ok(mut segments) = Segments::new(&header, &bytes[VIRTIO_HEADER..]) else { return 1 };
    let mut part = vec![0; VIRTIO_HEADER + MAX_PACKET];
    let mut failed = 0;
    while let Some(len) = segments.write_next(&mut part[VIRTIO_HEADER..]) {
        failed += u64::from(write(tun, std::iter::once(&part[..VIRTIO_HEADER + len])).is_err());
    }
    failed
}
