//! The fastest known way to write the same objects to the kernel, without the client's work.
//!
//! All requests are encoded before the clock starts. They are sent in large batches; only the last of each batch asks
//! for an answer. Every IPv4 route has a metric of its own, without which the kernel's work grows with the square of
//! the peers. What is read is received and not decoded.

use std::time::Instant;

use flannel_benches::{median, processor_time};
use flannel_netlink::{Mac, Namespace};
use ipnet::Ipv4Net;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::Measured;
use crate::peers::{Objects, objects};
use crate::site::{device, flush, lab};

// `linux/netlink.h`, `linux/rtnetlink.h`, `linux/neighbour.h`.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE_CREATE: u16 = 0x500;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;

/// Requests per `send`.
const BATCH: usize = 256;
const CHANGES: u32 = 21;

pub(crate) fn measure(size: u32) -> Measured {
    let lab = lab();
    let host = &lab.hosts[0].namespace;
    let index = device(host);
    let mut socket = Raw::open(host);
    let requests = Requests { index };
    let batches = requests.batches(size);

    let before = processor_time();
    let first = timed(|| batches.iter().for_each(|batch| socket.write(batch)));
    let first_cpu = processor_time() - before;
    let changes: Vec<_> = (0..CHANGES).map(|i| requests.change(i * (size / CHANGES))).collect();
    let change = median(changes.iter().map(|batch| timed(|| socket.write(batch))));
    let restart = timed(|| {
        let read: usize = [(RTM_GETNEIGH, AF_INET), (RTM_GETNEIGH, AF_BRIDGE), (RTM_GETROUTE, AF_INET)]
            .into_iter()
            .map(|(kind, family)| socket.dump(kind, family))
            .sum();
        assert!(read >= 3 * size as usize);
    });
    flush(host, size);
    let before = processor_time();
    let repair = timed(|| batches.iter().for_each(|batch| socket.write(batch)));
    [
        ("first start", first),
        ("first start CPU", first_cpu),
        ("one change", change),
        ("restart", restart),
        ("repair", repair),
        ("repair CPU", processor_time() - before),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn timed(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// Encodes requests for one device.
struct Requests {
    index: u32,
}

impl Requests {
    /// Encodes the objects of all peers, in the reverse order of a packet's lookups.
    fn batches(&self, size: u32) -> Vec<Vec<u8>> {
        let peers: Vec<Objects> = (0..size).map(|n| objects(n, 0)).collect();
        let requests: Vec<Vec<u8>> = peers
            .iter()
            .map(|peer| self.neighbour(peer))
            .chain(peers.iter().map(|peer| self.entry(RTM_NEWNEIGH, peer)))
            .chain(peers.iter().map(|peer| self.route(peer.subnet)))
            .collect();
        requests.chunks(BATCH).map(batch).collect()
    }

    /// Encodes the change of a peer's device.
    fn change(&self, n: u32) -> Vec<u8> {
        let (old, new) = (objects(n, 0), objects(n, 1));
        batch(&[self.neighbour(&new), self.entry(RTM_NEWNEIGH, &new), self.entry(RTM_DELNEIGH, &old)])
    }

    fn neighbour(&self, peer: &Objects) -> Vec<u8> {
        let gateway = peer.subnet.network().octets();
        self.neighbour_message(RTM_NEWNEIGH, AF_INET, 0, &gateway, peer.mac)
    }

    fn entry(&self, kind: u16, peer: &Objects) -> Vec<u8> {
        let std::net::IpAddr::V4(public) = peer.public else { unreachable!("all peers are IPv4") };
        // NTF_SELF
        self.neighbour_message(kind, AF_BRIDGE, 2, &public.octets(), peer.mac)
    }

    /// `struct ndmsg`, NDA_DST and NDA_LLADDR; the state is permanent.
    fn neighbour_message(&self, kind: u16, family: u8, flags: u8, destination: &[u8], mac: Mac) -> Vec<u8> {
        let mut bytes = vec![family, 0, 0, 0];
        bytes.extend(self.index.to_ne_bytes());
        bytes.extend(0x80_u16.to_ne_bytes());
        bytes.extend([flags, 0]);
        attribute(&mut bytes, 1, destination);
        attribute(&mut bytes, 2, &mac.0);
        request(kind, if kind == RTM_NEWNEIGH { NLM_F_REPLACE_CREATE } else { 0 }, &bytes)
    }

    /// `struct rtmsg` of the main table, RTA_DST, RTA_GATEWAY, RTA_OIF and RTA_PRIORITY; on-link.
    fn route(&self, subnet: Ipv4Net) -> Vec<u8> {
        let mut bytes = vec![AF_INET, subnet.prefix_len(), 0, 0, 254, 3, 0, 1];
        bytes.extend(4_u32.to_ne_bytes());
        let network = subnet.network();
        attribute(&mut bytes, 1, &network.octets());
        attribute(&mut bytes, 5, &network.octets());
        attribute(&mut bytes, 4, &self.index.to_ne_bytes());
        attribute(&mut bytes, 6, &(network.to_bits() >> 8).to_ne_bytes());
        request(RTM_NEWROUTE, NLM_F_REPLACE_CREATE, &bytes)
    }
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Encodes a message; its sequence number does not matter.
fn request(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

/// Joins requests; the last asks for an answer.
fn batch(requests: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = requests.concat();
    let last = bytes.len() - requests[requests.len() - 1].len();
    let flags = u16::from_ne_bytes([bytes[last + 6], bytes[last + 7]]) | NLM_F_ACK;
    bytes[last + 6..last + 8].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

struct Raw {
    socket: Socket,
    received: Vec<u8>,
}

impl Raw {
    fn open(namespace: &Namespace) -> Self {
        let socket = namespace.run(|| {
            let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
            socket.bind_auto().unwrap();
            socket.connect(&SocketAddr::new(0, 0)).unwrap();
            socket.set_cap_ack(true).unwrap();
            socket
        });
        Self { socket: socket.unwrap(), received: Vec::with_capacity(64 * 1024) }
    }

    /// Sends a batch and reads the single answer that follows success.
    fn write(&mut self, batch: &[u8]) {
        self.socket.send(batch, 0).unwrap();
        self.receive();
        let errno = &self.received[16..20];
        assert_eq!((self.kind(0), errno), (NLMSG_ERROR, &[0; 4][..]), "the kernel rejected a request");
    }

    /// Reads all objects of a kind and counts them.
    fn dump(&mut self, kind: u16, family: u8) -> usize {
        let mut payload = [0; 12];
        payload[0] = family;
        self.socket.send(&request(kind, NLM_F_DUMP, &payload), 0).unwrap();
        let mut count = 0;
        loop {
            self.receive();
            let mut at = 0;
            while at < self.received.len() {
                match self.kind(at) {
                    NLMSG_DONE => return count,
                    NLMSG_ERROR => panic!("the kernel refused to list {kind}"),
                    _ => count += 1,
                }
                let len = u32::from_ne_bytes(self.received[at..at + 4].try_into().unwrap());
                at += (len as usize).next_multiple_of(4);
            }
        }
    }

    fn kind(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.received[at + 4], self.received[at + 5]])
    }

    fn receive(&mut self) {
        self.received.clear();
        self.socket.recv(&mut self.received, 0).unwrap();
    }
}
