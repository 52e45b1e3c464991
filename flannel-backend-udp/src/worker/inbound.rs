//! From the network to the device.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::{IpAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use super::limit::Limit;
use super::{Fault, Parts, Path, Step};
use crate::counters::DropReason;
use crate::forward::{self, Refusal};
use crate::offload::coalesce::{Coalescer, Joined, PIECES};
use crate::offload::split::{MAX_PACKET, Segments};
use crate::offload::virtio::{VIRTIO_HEADER, VirtioHeader};
use crate::packet::icmp::{self, Trouble};
use crate::packet::{Header, decrement_ttl};
use crate::peers::View;
use crate::sys::socket::{Inbox, Received};

/// So many errors of a socket in a row, with nothing received between, are taken for its end.
const ERRORS: u32 = 100;

/// The way from one socket to the device.
pub(super) struct Inward<'a> {
    parts: &'a Parts,
    socket: &'a UdpSocket,
    inbox: Inbox,
    /// How many errors the socket had since something was received.
    errors: u32,
    view: View,
    coalescer: Coalescer,
    limit: Limit,
}

impl Path for Inward<'_> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn step(&mut self) -> Result<Step, Fault> {
        // What it borrows is not touched meanwhile.
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
            // An error that the network reported is told once and means nothing to this end.
            Err(_) if self.errors < ERRORS => {
                self.errors += 1;
                Ok(Step::default())
            }
            Err(error) => Err(Fault::Sockets(format!("the socket cannot be read: {error}"))),
        }
    }

    fn over(&self) -> Fault {
        Fault::Sockets("the socket was shut down".to_owned())
    }
}

impl<'a> Inward<'a> {
    pub(super) fn new(parts: &'a Parts, socket: &'a UdpSocket, view: View) -> Self {
        let mut coalescer = Coalescer::new();
        coalescer.joins_tcp = parts.offloads.device_tcp;
        coalescer.joins_udp = parts.offloads.device_udp;
        let limit = Limit::new(Instant::now());
        Self { parts, socket, inbox: Inbox::new(), errors: 0, view, coalescer, limit }
    }

    /// Passes on what was received at once.
    fn burst(&mut self, inbox: &Inbox) {
        self.view.refresh();
        for message in inbox.iter() {
            self.message(&message, inbox.buffer());
        }
        self.write(inbox.buffer());
    }

    /// Passes on the datagrams of one message, all from one sender, which is in a buffer.
    fn message(&mut self, message: &Received<'_>, buffer: &[u8]) {
        let from = message.from.ip();
        let count = message.bytes.len().div_ceil(message.segment.max(1)).max(1);
        if self.view.routing().peers.by_public(from).is_none() {
            return self.parts.counters.dropped(DropReason::Stranger, count as u64);
        }
        // Packets that follow each other are mostly from one source.
        let mut known: Option<(IpAddr, usize)> = None;
        let mut passed = Passed::default();
        let mut start = message.start;
        // A datagram may be empty.
        let empty = std::iter::once(message.bytes).filter(|bytes| bytes.is_empty());
        for datagram in message.bytes.chunks(message.segment.max(1)).chain(empty) {
            match forward::inward(self.view.routing(), from, datagram, known) {
                Ok((source, hop, len)) => {
                    if known.is_none_or(|(_, before)| before != hop) {
                        self.count(known, &mut passed);
                    }
                    known = Some((source, hop));
                    passed.packets += 1;
                    passed.bytes += len as u64;
                    self.take(buffer, start..start + len);
                }
                Err(refusal) => self.refuse(refusal, from, datagram),
            }
            start += datagram.len();
        }
        self.count(known, &mut passed);
    }

    fn take(&mut self, buffer: &[u8], packet: Range<usize>) {
        if !self.coalescer.has_room() {
            self.write(buffer);
        }
        self.coalescer.push(buffer, packet);
    }

    fn count(&self, known: Option<(IpAddr, usize)>, passed: &mut Passed) {
        let passed = std::mem::take(passed);
        if let Some(hop) = known.and_then(|(_, hop)| self.view.routing().peers.hops().get(hop)) {
            hop.counters.received_packets.add(passed.packets);
            hop.counters.received_bytes.add(passed.bytes);
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
            tracing::info!(
                "the device does not take joined packets: they are written one by one from now on"
            );
            (self.coalescer.joins_tcp, self.coalescer.joins_udp) = (false, false);
        }
    }

    /// Drops a peer's datagram, counts it, and tells its source if that is of use.
    fn refuse(&mut self, refusal: Refusal, from: IpAddr, datagram: &[u8]) {
        self.parts.counters.dropped(refusal.reason, 1);
        if let Some(peer) = self.view.routing().peers.by_public(from) {
            peer.counters.refused_packets.add(1);
        }
        if let Some(trouble) = refusal.trouble {
            self.complain(trouble, datagram);
        }
    }

    /// Sends an error message to a packet's source, through the peer that it is behind.
    fn complain(&mut self, trouble: Trouble, packet: &[u8]) {
        let routing = self.view.routing();
        let Some(header) = Header::read(packet) else { return };
        let Some(own) = routing.own(header.source) else { return };
        let Some(hop) = routing.peers.lookup(header.source) else { return };
        let Some(to) = forward::address(routing, hop) else { return };
        let mut message = [0; size_of::<icmp::Message>()];
        let Some(len) = icmp::write(&mut message, own, trouble, packet) else { return };
        decrement_ttl(&mut message);
        if self.limit.allows(Instant::now()) {
            // One that is not sent is one error message less.
            let _ = crate::sys::socket::send(self.socket, to, &[IoSlice::new(&message[..len])], None);
        }
    }
}

#[derive(Default)]
struct Passed {
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

/// Takes a joined packet apart again and writes its parts; returns how many could not be written.
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
