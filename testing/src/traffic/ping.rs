//! ICMP echo: one round trip, or a steady stream of them that shows every packet lost meanwhile.
//!
//! Raw sockets are used because an unprivileged ping socket is refused in a fresh namespace, where
//! `net.ipv4.ping_group_range` admits nobody (`icmp(7)`).

use crate::sys;
use echo::Reply;
use flannel_netlink::Namespace;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

mod echo;
mod report;
mod running;

pub use report::{PingReport, RoundTrip};
pub use running::RunningPing;

/// Room for the answers that come in one burst when a link works again: the kernel queues packets for an
/// address that it is still asking for, and then sends them all at once.
const BUFFER: i32 = 8 * 1024 * 1024;

/// How an echo request is sent.
#[derive(Clone, Debug)]
pub struct PingOptions {
    /// Source address; the kernel chooses by route if there is none.
    pub from: Option<IpAddr>,
    /// Bytes behind the ICMP header. A packet has 28 bytes more with IPv4, 48 with IPv6.
    pub payload: usize,
    /// Forbid fragmentation, also by the sender itself.
    pub dont_fragment: bool,
    /// How long an answer is waited for.
    pub timeout: Duration,
}

/// 56 bytes of payload as the `ping` program sends, and three seconds of patience: a kernel whose question for a neighbour
/// was lost asks again after one.
impl Default for PingOptions {
    fn default() -> Self {
        Self { from: None, payload: 56, dont_fragment: false, timeout: Duration::from_secs(3) }
    }
}

/// Sends one echo request from inside `namespace` to `to`, and answers with the time until its reply.
///
/// # Errors
/// Every [`PingError`].
pub fn ping(namespace: &Namespace, to: IpAddr, options: &PingOptions) -> Result<Duration, PingError> {
    let socket = open_in(namespace, to, options)?;
    report_unreachable(&socket, to)?;
    let (identifier, sequence) = (next_identifier(), 1);
    let mut payload = vec![0; options.payload];
    super::pattern::Pattern::new(identifier.into()).fill(&mut payload);
    let started = Instant::now();
    let request = echo::request(to.is_ipv4(), identifier, sequence, &payload);
    socket.send(&request).map_err(|error| PingError::from_io(to, error))?;
    let mut buf = vec![0; options.payload + echo::MAX_HEADERS];
    loop {
        let left = options.timeout.saturating_sub(started.elapsed());
        // What came in time is read, also by a thread that had no turn for long.
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let n = match socket.recv(&mut buf) {
            Ok(n) => n,
            Err(error) if is_no_packet(&error) && !left.is_zero() => continue,
            Err(error) if is_no_packet(&error) => {
                return Err(PingError::Timeout { to, timeout: options.timeout });
            }
            Err(error) => return Err(PingError::from_io(to, error)),
        };
        let elapsed = started.elapsed();
        match Reply::decode(to.is_ipv4(), buf.get(..n).unwrap_or_default()) {
            Some(reply) if (reply.identifier, reply.sequence) == (identifier, sequence) => {
                let unchanged = reply.payload == payload;
                return if unchanged { Ok(elapsed) } else { Err(PingError::Altered { to }) };
            }
            // Others may ping the same address all the time.
            _ if elapsed > options.timeout * 2 => {
                return Err(PingError::Timeout { to, timeout: options.timeout });
            }
            _ => {}
        }
    }
}

/// Why a ping was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// Nothing came back: the network is cut, or too slow.
    #[error("no answer from {to} within {timeout:?}")]
    Timeout {
        /// Who was asked.
        to: IpAddr,
        /// How long.
        timeout: Duration,
    },
    /// The packet may not be fragmented and is larger than a link on the way.
    #[error("packet to {to} is too large for a link on its way")]
    TooLarge {
        /// Who was asked.
        to: IpAddr,
    },
    /// Somebody on the way, or this host, has no route.
    #[error("{to} is unreachable")]
    Unreachable {
        /// Who was asked.
        to: IpAddr,
        /// As the kernel says it.
        source: io::Error,
    },
    /// The answer does not hold the bytes that were sent: something on the way damages packets.
    #[error("answer from {to} does not hold the bytes that were sent")]
    Altered {
        /// Who was asked.
        to: IpAddr,
    },
    /// The socket could not be opened or used.
    #[error("cannot ping")]
    Socket(#[from] io::Error),
}

impl PingError {
    fn from_io(to: IpAddr, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EMSGSIZE) => Self::TooLarge { to },
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ECONNREFUSED | libc::EACCES) => {
                Self::Unreachable { to, source }
            }
            _ => Self::Socket(source),
        }
    }
}

/// Opens a raw ICMP socket inside `namespace` that talks with `to` only.
///
/// The type is borrowed from UDP, as the standard library has no other datagram socket.
fn open_in(namespace: &Namespace, to: IpAddr, options: &PingOptions) -> Result<UdpSocket, PingError> {
    let open = || {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP),
            IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        };
        let socket = sys::socket(family, libc::SOCK_RAW, protocol)?;
        let (level, name, value) = match (to, options.dont_fragment) {
            (IpAddr::V4(_), true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            (IpAddr::V4(_), false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (IpAddr::V6(_), dont) => (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, dont.into()),
        };
        sys::set_option(socket.as_fd(), level, name, value)?;
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        if let Some(from) = options.from {
            sys::bind(socket.as_fd(), SocketAddr::new(from, 0))?;
        }
        let socket = UdpSocket::from(socket);
        socket.connect(SocketAddr::new(to, 0))?;
        Ok(socket)
    };
    namespace.run(open)?.map_err(|error| PingError::from_io(to, error))
}

/// Makes the socket fail when an ICMP error comes back, instead of being silent until the timeout (`ip(7)`).
fn report_unreachable(socket: &UdpSocket, to: IpAddr) -> io::Result<()> {
    let (level, name) = match to {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    sys::set_option(socket.as_fd(), level, name, 1)
}

/// An echo identifier that no other ping of this process uses soon; one of another process may.
fn next_identifier() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(u16::from_be_bytes([high, low]).wrapping_mul(251))
}

/// Whether a receive ended because its time was over or a signal came.
fn is_no_packet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
