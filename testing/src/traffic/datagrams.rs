//! UDP datagrams between two namespaces, each checked by its content.

use super::pattern::Pattern;
use super::stream::TransferError;
use flannel_netlink::Namespace;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Every datagram starts with its number.
const NUMBER: usize = 4;
/// The largest payload of a datagram over IPv4 (RFC 768, RFC 791).
const MAX_PAYLOAD: usize = 65_507;

/// What became of a series of datagrams.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct DatagramReport {
    /// Datagrams sent.
    pub sent: usize,
    /// Positions in the series of those that did not come.
    pub lost: Vec<usize>,
    /// Datagrams that came with other bytes than were sent, or that nobody sent.
    pub altered: usize,
    /// Datagrams that came a second time.
    pub duplicates: usize,
    /// Datagrams that came after one that was sent later.
    pub reordered: usize,
}

impl DatagramReport {
    /// Whether each datagram came once, unchanged and in its place.
    #[must_use]
    pub fn is_perfect(&self) -> bool {
        *self == Self { sent: self.sent, ..Self::none() }
    }

    fn none() -> Self {
        Self { sent: 0, lost: Vec::new(), altered: 0, duplicates: 0, reordered: 0 }
    }
}

/// Sends one datagram of each of `sizes` (bytes of payload, at least 4) from inside `from` to `address` of `to`, and
/// waits at most `limit` for each.
///
/// A datagram is sent when the one before has come or is given up, so that no buffer overflows.
///
/// # Errors
/// [`TransferError::NotConnected`] when the sockets cannot be opened, [`TransferError::Broken`] when the kernel
/// refuses to send, which it does for a size that no datagram has.
pub fn datagrams(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    sizes: &[usize],
    limit: Duration,
) -> Result<DatagramReport, TransferError> {
    if let Some(size) = sizes.iter().find(|size| !(NUMBER..=MAX_PAYLOAD).contains(*size)) {
        let message = format!("datagram of {size} bytes: it must have {NUMBER} to {MAX_PAYLOAD}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message).into());
    }
    let (sender, receiver) = open(from, to, address)?;
    let mut report = DatagramReport::none();
    let mut came = vec![false; sizes.len()];
    for (number, size) in sizes.iter().enumerate() {
        sender.send(&content(number, *size))?;
        report.sent += 1;
        wait_for(number, &receiver, sizes, limit, &mut came, &mut report)?;
    }
    report.lost = (0..sizes.len()).filter(|number| !came[*number]).collect();
    Ok(report)
}

/// Receives until datagram `number` has come or `limit` has passed, and notes everything that comes meanwhile.
fn wait_for(
    number: usize,
    receiver: &UdpSocket,
    sizes: &[usize],
    limit: Duration,
    came: &mut [bool],
    report: &mut DatagramReport,
) -> io::Result<()> {
    let mut buf = vec![0; MAX_PAYLOAD + 1];
    let deadline = Instant::now() + limit;
    while !came[number] {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        receiver.set_read_timeout(Some(left))?;
        let bytes = match receiver.recv(&mut buf) {
            Ok(n) => &buf[..n],
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        match identify(bytes, sizes).filter(|found| *found <= number) {
            None => report.altered += 1,
            Some(found) if came[found] => report.duplicates += 1,
            Some(found) => {
                report.reordered += usize::from(found < number);
                came[found] = true;
            }
        }
    }
    Ok(())
}

fn open(from: &Namespace, to: &Namespace, address: IpAddr) -> Result<(UdpSocket, UdpSocket), TransferError> {
    let mut address = SocketAddr::new(address, 0);
    let receiver = to.run(|| UdpSocket::bind(address)).and_then(|bound| bound);
    let receiver = receiver.map_err(|source| TransferError::NotConnected { address, source })?;
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

/// The bytes of a datagram: its number, then a pattern that depends on it.
fn content(number: usize, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let (head, tail) = bytes.split_at_mut(NUMBER);
    head.copy_from_slice(&(number as u32).to_be_bytes());
    Pattern::new(number as u64).fill(tail);
    bytes
}

/// The number of a datagram, if it is one of the series and unchanged.
fn identify(bytes: &[u8], sizes: &[usize]) -> Option<usize> {
    let number = usize::try_from(u32::from_be_bytes(*bytes.first_chunk()?)).ok()?;
    let size = *sizes.get(number)?;
    (content(number, size) == bytes).then_some(number)
}
