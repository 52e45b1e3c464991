//! UDP datagrams between two namespaces, each checked by its content.

use super::pattern::Pattern;
use super::stream::TransferError;
use crate::sys;
use flannel_netlink::Namespace;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Every datagram with enough room starts with its number.
const NUMBER: usize = 4;
/// The largest payload of a datagram over IPv4 (RFC 768, RFC 791).
const MAX_PAYLOAD: usize = 65_507;

/// No datagram arrives after more than this many later ones.
const LATE: usize = 64;

/// Room for the datagrams in flight, with the kernel's overhead for each.
const BUFFER: i32 = 8 << 20;

/// The outcome of a series of datagrams.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct DatagramReport {
    /// The number of datagrams sent.
    pub sent: usize,
    /// The positions of those that were lost.
    pub lost: Vec<usize>,
    /// The number of datagrams with altered or unknown content.
    pub altered: usize,
    /// The number of duplicates.
    pub duplicates: usize,
    /// The number of datagrams that arrived after a later one.
    pub reordered: usize,
}

impl DatagramReport {
    /// Returns whether each datagram arrived once, unchanged and in order.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        *self == Self { sent: self.sent, ..Self::none() }
    }

    fn none() -> Self {
        Self { sent: 0, lost: Vec::new(), altered: 0, duplicates: 0, reordered: 0 }
    }
}

/// Sends a datagram of each of `sizes` (bytes of payload, at least 1) from `from` to `address` in `to`, and waits at
/// most `limit` for each.
///
/// Sends a datagram once the one before has arrived or is given up, so that no buffer overflows.
///
/// # Errors
/// [`TransferError::NotConnected`] if the sockets cannot be opened, [`TransferError::Broken`] if the kernel refuses to
/// send, as it does for an invalid size.
pub fn datagrams(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    sizes: &[usize],
    limit: Duration,
) -> Result<DatagramReport, TransferError> {
    datagrams_in_flight(from, to, address, sizes, limit, 1)
}

/// Sends like [`datagrams`], with this many datagrams in flight.
///
/// # Errors
/// See [`datagrams`].
pub fn datagrams_in_flight(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    sizes: &[usize],
    limit: Duration,
    in_flight: usize,
) -> Result<DatagramReport, TransferError> {
    if let Some(size) = sizes.iter().find(|size| !(1..=MAX_PAYLOAD).contains(*size)) {
        let message = format!("datagram of {size} bytes: it must have 1 to {MAX_PAYLOAD}");
        return Err(io::Error::new(ErrorKind::InvalidInput, message).into());
    }
    let (sender, receiver) = open(from, to, address)?;
    let mut series = Series::new(sizes);
    for (number, size) in sizes.iter().enumerate() {
        sender.send(&content(number, *size))?;
        series.report.sent += 1;
        if let Some(number) = (number + 1).checked_sub(in_flight.max(1)) {
            series.wait_for(number, &receiver, limit)?;
        }
    }
    for number in sizes.len().saturating_sub(in_flight)..sizes.len() {
        series.wait_for(number, &receiver, limit)?;
    }
    series.report.lost = (0..sizes.len()).filter(|number| !series.came[*number]).collect();
    Ok(series.report)
}

/// A series of datagrams and its outcome.
struct Series<'a> {
    sizes: &'a [usize],
    came: Vec<bool>,
    /// The latest one that has arrived.
    newest: usize,
    report: DatagramReport,
    buf: Vec<u8>,
}

impl<'a> Series<'a> {
    fn new(sizes: &'a [usize]) -> Self {
        let (came, buf) = (vec![false; sizes.len()], vec![0; MAX_PAYLOAD + 1]);
        Self { sizes, came, newest: 0, report: DatagramReport::none(), buf }
    }

    /// Receives until datagram `number` has arrived or `limit` has passed, and records everything that arrives
    /// meanwhile.
    fn wait_for(&mut self, number: usize, receiver: &UdpSocket, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        while !self.came[number] {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            receiver.set_read_timeout(Some(left))?;
            match receiver.recv(&mut self.buf) {
                Ok(n) => self.note(n),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Records the first `n` bytes of the buffer.
    fn note(&mut self, n: usize) {
        match self.identify(self.buf.get(..n).unwrap_or_default()) {
            None => self.report.altered += 1,
            Some(found) if self.came[found] => self.report.duplicates += 1,
            Some(found) => {
                self.report.reordered += usize::from(found < self.newest);
                self.newest = self.newest.max(found);
                self.came[found] = true;
            }
        }
    }

    /// Returns the number of a datagram if it was sent and is unchanged.
    fn identify(&self, bytes: &[u8]) -> Option<usize> {
        let is = |number: usize| {
            let size = *self.sizes.get(number)?;
            (number < self.report.sent && content(number, size) == bytes).then_some(number)
        };
        match bytes.first_chunk() {
            Some(number) => is(usize::try_from(u32::from_be_bytes(*number)).ok()?),
            // Too small for a number: the first equal one that is still missing.
            None => {
                let missing = self.newest.saturating_sub(LATE)..self.report.sent;
                missing.filter(|number| !self.came[*number]).find_map(is)
            }
        }
    }
}

fn open(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<(UdpSocket, UdpSocket), TransferError> {
    let mut address = SocketAddr::new(address, 0);
    let receiver = to.run(|| UdpSocket::bind(address)).and_then(|bound| bound);
    let receiver = receiver.map_err(|source| TransferError::NotConnected { address, source })?;
    sys::set_option(receiver.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    address = receiver.local_addr()?;
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let connect = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(address)?;
        Ok(socket)
    };
    let sender = from.run(connect).and_then(|connected| connected);
    let sender = sender.map_err(|source| TransferError::NotConnected { address, source })?;
    Ok((sender, receiver))
}

/// Returns the content of a datagram: its number if there is room, then a pattern that depends on it.
fn content(number: usize, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let head = if size < NUMBER { 0 } else { NUMBER };
    let (head, tail) = bytes.split_at_mut(head);
    if !head.is_empty() {
        head.copy_from_slice(&(number as u32).to_be_bytes());
    }
    Pattern::new(number as u64).fill(tail);
    bytes
}
