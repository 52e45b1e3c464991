//! The sockets of the probes, and the responder for the probes of peers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::{ProbeMeans, ProbeSide};
use futures::future::{join_all, pending};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::packet::{self, ProbeId};
use super::path::{PathMeasurement, PathProbe, ProbePlan, ProbeRequest, ProbeResult};
use super::site::ProbeSource;
use super::sys;

/// The pause after a socket error, so that a broken socket does not spin.
const AFTER_ERROR: Duration = Duration::from_millis(10);

/// The sockets of this host, and the unanswered probes.
#[derive(Debug)]
pub(super) struct ProbeSockets {
    sockets: Vec<ProbeSocket>,
    /// The sockets that could not be opened, and why.
    missing: Vec<(ProbeSide, bool, ProbeMeans, String)>,
    responder_port: u16,
    secret: u64,
    next: AtomicU32,
    waiting: Mutex<BTreeMap<u32, (IpAddr, oneshot::Sender<Instant>)>>,
}

#[derive(Debug)]
struct ProbeSocket {
    side: ProbeSide,
    is_v4: bool,
    means: ProbeMeans,
    /// Whether received packets start with the IP header.
    has_header: bool,
    socket: UdpSocket,
}

impl ProbeSockets {
    /// Opens the sockets. A failure is reported by the probes that need the socket.
    pub(super) fn open(own: &ProbeSource, responder_port: u16) -> Self {
        let mut wire = Self {
            sockets: Vec::new(),
            missing: Vec::new(),
            responder_port,
            secret: fastrand::u64(..),
            next: AtomicU32::new(fastrand::u32(..)),
            waiting: Mutex::default(),
        };
        for address in own.inside.keys() {
            wire.add(ProbeSide::Inside, *address, ProbeMeans::Udp);
            wire.add(ProbeSide::Inside, *address, ProbeMeans::Icmp);
        }
        wire.add(ProbeSide::Outside, Ipv4Addr::UNSPECIFIED.into(), ProbeMeans::Icmp);
        wire.add(ProbeSide::Outside, Ipv6Addr::UNSPECIFIED.into(), ProbeMeans::Icmp);
        wire
    }

    fn add(&mut self, side: ProbeSide, from: IpAddr, means: ProbeMeans) {
        let is_v4 = from.is_ipv4();
        match open(from, means) {
            Ok((socket, has_header)) => {
                self.sockets.push(ProbeSocket { side, is_v4, means, has_header, socket })
            }
            Err(error) => self.missing.push((side, is_v4, means, explained(&error))),
        }
    }

    /// Receives answers, and never returns.
    pub(super) async fn listen(&self) -> std::convert::Infallible {
        join_all(self.sockets.iter().map(|open| self.hear(open))).await;
        pending().await
    }

    async fn hear(&self, open: &ProbeSocket) {
        // The probe's ID follows at most 60 bytes of IP header and 8 of ICMP.
        let mut buffer = [0; 128];
        loop {
            let Ok((length, from)) = open.socket.recv_from(&mut buffer).await else {
                // An ICMP error was returned. More may follow.
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            };
            let (bytes, from) = (&buffer[..length], from.ip());
            let mark = if open.means == ProbeMeans::Udp {
                packet::read_answer(bytes)
            } else {
                packet::read_echo_reply(bytes, from, open.has_header)
            };
            let Some(mark) = mark.filter(|mark| mark.secret == self.secret) else { continue };
            let mut waiting = self.waiting();
            if waiting.get(&mark.number).is_some_and(|(asked, _)| *asked == from)
                && let Some((_, answer)) = waiting.remove(&mark.number)
            {
                // The receiver is gone after a timeout.
                let _ = answer.send(Instant::now());
            }
        }
    }

    /// Measures a path while [`listen`](Self::listen) runs.
    pub(super) async fn measure(&self, plan: ProbePlan) -> PathMeasurement {
        let (side, address) = (plan.side, plan.address);
        let mut measuring = PathProbe::new(plan);
        while let Some(question) = measuring.next() {
            tokio::time::sleep(question.after).await;
            measuring.hear(self.ask(side, address, question).await);
        }
        measuring.finish()
    }

    async fn ask(&self, side: ProbeSide, address: IpAddr, question: ProbeRequest) -> ProbeResult {
        let (answer, answered_at) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(number, (address, answer));
        let waiting = Waiting { wire: self, number };
        let asked = Instant::now();
        if let Err(outcome) = self.send(side, address, question, waiting.number).await {
            return outcome;
        }
        match timeout(question.patience, answered_at).await {
            Ok(Ok(answered)) => ProbeResult::Answered(answered.saturating_duration_since(asked)),
            _ => ProbeResult::Lost,
        }
    }

    async fn send(
        &self,
        side: ProbeSide,
        to: IpAddr,
        question: ProbeRequest,
        number: u32,
    ) -> Result<(), ProbeResult> {
        let is_it = |open: &&ProbeSocket| {
            open.side == side && open.is_v4 == to.is_ipv4() && open.means == question.by
        };
        let Some(open) = self.sockets.iter().find(is_it) else {
            let why = self
                .missing
                .iter()
                .find(|(at, is_v4, means, _)| *at == side && *is_v4 == to.is_ipv4() && *means == question.by);
            let why =
                why.map_or_else(|| "this host has no address to send from".to_owned(), |it| it.3.clone());
            return Err(ProbeResult::Refused(why));
        };
        let mark = ProbeId { secret: self.secret, number };
        let text = packet::question(mark, to, question.size);
        let (text, port) = if question.by == ProbeMeans::Udp {
            (text, self.responder_port)
        } else {
            (packet::echo_request(&text, to, mark), 0)
        };
        match open.socket.send_to(&text, SocketAddr::new(to, port)).await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Err(ProbeResult::TooLarge),
            Err(error) => Err(ProbeResult::Refused(error.to_string())),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u32, (IpAddr, oneshot::Sender<Instant>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An unanswered probe. Dropping it forgets the probe.
struct Waiting<'a> {
    wire: &'a ProbeSockets,
    number: u32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.wire.waiting().remove(&self.number);
    }
}

/// Opens a socket to send probes from, and returns whether it receives IP headers.
fn open(from: IpAddr, means: ProbeMeans) -> io::Result<(UdpSocket, bool)> {
    let is_v4 = from.is_ipv4();
    let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
    let (socket, has_header) = if means == ProbeMeans::Udp {
        (Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?, false)
    } else {
        icmp(domain, is_v4)?
    };
    Ok((ready(socket, SocketAddr::new(from, 0))?, has_header))
}

/// Opens an ICMP socket: a ping socket where the host allows it (`net.ipv4.ping_group_range`, icmp(7)), or else a raw one.
fn icmp(domain: Domain, is_v4: bool) -> io::Result<(Socket, bool)> {
    let protocol = if is_v4 { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    if let Ok(socket) = Socket::new(domain, Type::DGRAM, Some(protocol)) {
        return Ok((socket, false));
    }
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    sys::hear_echo_replies_only(&socket, is_v4)?;
    // Raw IPv6 sockets receive no header (RFC 3542, section 3).
    Ok((socket, is_v4))
}

/// Binds a socket to this address and forbids fragmentation.
fn ready(socket: Socket, from: SocketAddr) -> io::Result<UdpSocket> {
    sys::never_fragment(&socket, from.is_ipv4())?;
    if from.is_ipv6() {
        socket.set_only_v6(true).or_else(|error| match error.raw_os_error() {
            // ICMPv6 sockets have no such option.
            Some(libc::EINVAL | libc::ENOPROTOOPT) => Ok(()),
            _ => Err(error),
        })?;
    }
    socket.bind(&from.into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

fn explained(error: &io::Error) -> String {
    let hint = match error.kind() == io::ErrorKind::PermissionDenied {
        true => ": ICMP probes need root, CAP_NET_RAW or the sysctl net.ipv4.ping_group_range",
        false => "",
    };
    format!("{error}{hint}")
}

/// Answers the probes of peers.
#[derive(Debug)]
pub(super) struct Responder {
    sockets: Vec<UdpSocket>,
    peers: Mutex<BTreeSet<IpAddr>>,
}

/// The maximum number of answers per second. Within its budget a peer sends less than one probe per second.
const ANSWERS_A_SECOND: u32 = 1000;

impl Responder {
    /// Opens the port on every overlay address. Also returns the failures.
    pub(super) fn open(own: &ProbeSource, port: u16) -> (Self, Vec<String>) {
        let (mut sockets, mut failed) = (Vec::new(), Vec::new());
        for address in own.inside.keys().map(|address| SocketAddr::new(*address, port)) {
            let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
            let opened = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
            match opened.and_then(|socket| ready(socket, address)) {
                Ok(socket) => sockets.push(socket),
                Err(error) => failed.push(format!("UDP {address}: {error}")),
            }
        }
        (Self { sockets, peers: Mutex::default() }, failed)
    }

    /// Sets the addresses to answer.
    pub(super) fn set_peers(&self, peers: BTreeSet<IpAddr>) {
        *self.peers.lock().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    /// Answers, and never returns.
    pub(super) async fn serve(&self) -> std::convert::Infallible {
        join_all(self.sockets.iter().map(|socket| self.answer(socket))).await;
        pending().await
    }

    async fn answer(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let (mut since, mut answers) = (Instant::now(), 0);
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(AFTER_ERROR).await;
                continue;
            };
            let is_peer = self.peers.lock().unwrap_or_else(PoisonError::into_inner).contains(&from.ip());
            if since.elapsed() >= Duration::from_secs(1) {
                (since, answers) = (Instant::now(), 0);
            }
            if is_peer && answers < ANSWERS_A_SECOND && packet::answer(&mut buffer[..length]) {
                answers += 1;
                // A failure looks like a lost packet to the peer.
                let _ = socket.try_send_to(&buffer[..length], from);
            }
        }
    }
}
