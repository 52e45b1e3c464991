//! ICMP echo: a single round trip, or a steady stream that shows every lost packet.
//!
//! Uses raw sockets because a new namespace rejects unprivileged ping sockets: its `net.ipv4.ping_group_range` is empty
//! (`icmp(7)`).

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

/// Room for the burst of answers after a link works again: the kernel queues packets for an unresolved neighbour and
/// sends them all at once.
const BUFFER: i32 = 8 * 1024 * 1024;

/// Options of a ping.
#[derive(Clone, Debug)]
pub struct PingOptions {
    /// The source address; by default the kernel chooses it by route.
    pub from: Option<IpAddr>,
    /// The number of bytes after the ICMP header. A packet has 28 bytes more with IPv4, 48 with IPv6.
    pub payload: usize,
    /// Whether to forbid fragmentation, including by the sender.
    pub dont_fragment: bool,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

/// A payload of 56 bytes, as the `ping` program sends, and a timeout of three seconds: the kernel repeats a lost
/// neighbour request after one.
impl Default for PingOptions {
    fn default() -> Self {
        Self { from: None, payload: 56, dont_fragment: false, timeout: Duration::from_secs(3) }
    }
}

/// Sends an echo request from `namespace` to `to` and returns the round-trip time.
///
/// # Errors
/// See [`PingError`].
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
        // Reads what came in time, even if the thread was not scheduled for long.
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
            // Other processes may ping the same address all the time.
            _ if elapsed > options.timeout * 2 => {
                return Err(PingError::Timeout { to, timeout: options.timeout });
            }
            _ => {}
        }
    }
}

/// A failed ping.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PingError {
    /// No answer arrived: the network is interrupted or too slow.
    #[error("no answer from {to} within {timeout:?}")]
    Timeout {
        /// The destination.
        to: IpAddr,
        /// The time limit.
        timeout: Duration,
    },
    /// The packet must not be fragmented and is larger than the MTU of a link on the path.
    #[error("packet to {to} is too large for a link on the path")]
    TooLarge {
        /// The destination.
        to: IpAddr,
    },
    /// A router on the path, or this host, has no route.
    #[error("{to} is unreachable")]
    Unreachable {
        /// The destination.
        to: IpAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The answer does not contain the bytes that were sent: the path damages packets.
    #[error("answer from {to} does not contain the bytes that were sent")]
    Altered {
        /// The destination.
        to: IpAddr,
    },
    /// The socket could not be opened or used.
    #[error("ping socket failed")]
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

/// Opens a raw ICMP socket in `namespace` that is connected to `to`.
///
/// The type is a UDP socket's, as the standard library has no other datagram socket.
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

/// Makes the socket fail when an ICMP error arrives, instead of waiting for the timeout (`ip(7)`).
fn report_unreachable(socket: &UdpSocket, to: IpAddr) -> io::Result<()> {
    let (level, name) = match to {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    sys::set_option(socket.as_fd(), level, name, 1)
}

/// Returns an echo identifier that no other ping of this process uses soon; another process may use it.
fn next_identifier() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(u16::from_be_bytes([high, low]).wrapping_mul(251))
}

/// Returns whether a receive ended by its timeout or a signal.
fn is_no_packet(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}
