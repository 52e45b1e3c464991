//! TCP streams between two namespaces: one checks that every byte arrives, one measures throughput.

use super::pattern::{Checksum, Pattern};
use crate::sys;
use flannel_netlink::Namespace;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a few retransmissions of TCP, which start at 200 ms and double.
const STALL: Duration = Duration::from_secs(10);
/// A multiple of 8, as the pattern requires, and large enough for the kernel to segment it.
const BLOCK: usize = 64 * 1024;
/// Fixed, so that every run sends the same bytes.
const SEED: u64 = 0xf1a_77e1;

/// A stream that arrived complete and unchanged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Transfer {
    /// The number of bytes sent and received.
    pub bytes: u64,
    /// The checksum over all of them, equal at both ends.
    pub checksum: u64,
    /// From the first byte sent until the receiver confirmed the last.
    pub elapsed: Duration,
}

/// Sends `bytes` pseudo-random bytes over a TCP connection from `from` to `address` in `to`.
///
/// The receiver compares them with what it computes, and the sender compares the receiver's checksum with its own.
///
/// # Errors
/// See [`TransferError`].
pub fn transfer(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    bytes: u64,
) -> Result<Transfer, TransferError> {
    let (client, server) = connect(from, to, address)?;
    let started = Instant::now();
    let (sent, received) = thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(server, bytes));
        let sent = send(client, bytes);
        (sent, receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // The receiver's error says where; the sender only sees the connection break.
    let received = received?;
    let (checksum, confirmed) = sent?;
    if (checksum, checksum) != (received, confirmed) {
        return Err(TransferError::Altered { offset: None });
    }
    Ok(Transfer { bytes, checksum, elapsed: started.elapsed() })
}

/// A stream that did not arrive as it was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The listener lacks the address, or the network does not carry the connection.
    #[error("no connection to {address}")]
    NotConnected {
        /// The listener's address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke, or nothing moved for ten seconds.
    #[error("stream was interrupted")]
    Broken(#[from] io::Error),
    /// Fewer bytes arrived than were sent, although the connection was closed in order.
    #[error("stream ended after {received} of {expected} bytes")]
    Short {
        /// The number of bytes that arrived.
        received: u64,
        /// The number of bytes that were sent.
        expected: u64,
    },
    /// The path changed bytes, and the packet's checksum was wrong or not checked.
    #[error("stream was altered{}", offset.map(|n| format!(" at byte {n}")).unwrap_or_default())]
    Altered {
        /// The offset of the first wrong byte, if the receiver found it.
        offset: Option<u64>,
    },
}

/// The rate of a transfer from one namespace to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Throughput {
    /// The number of bytes received.
    pub bytes: u64,
    /// From the start until the last stream had arrived.
    pub elapsed: Duration,
}

impl Throughput {
    /// Returns the bits of payload per second.
    #[must_use]
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64()
    }
}

/// Writes the rate with a unit, such as `12.3 Gbit/s`.
impl std::fmt::Display for Throughput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.bits_per_second();
        let (divisor, unit) = if rate >= 1e9 { (1e9, "Gbit/s") } else { (1e6, "Mbit/s") };
        write!(f, "{:.1} {unit}", rate / divisor)
    }
}

/// Sends as much as possible for `duration` over `streams` TCP connections from `from` to `address` in `to`.
///
/// Does not check the bytes.
///
/// # Errors
/// [`TransferError::NotConnected`] or [`TransferError::Broken`].
pub fn throughput(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    duration: Duration,
    streams: usize,
) -> Result<Throughput, TransferError> {
    let connections = (0..streams).map(|_| connect(from, to, address)).collect::<Result<Vec<_>, _>>()?;
    let started = Instant::now();
    let results: Vec<io::Result<u64>> = thread::scope(|scope| {
        let mut receivers = Vec::new();
        for (client, server) in connections {
            scope.spawn(move || flood(client, started + duration));
            receivers.push(scope.spawn(move || drain(server)));
        }
        let result = |receiver: thread::ScopedJoinHandle<'_, _>| receiver.join();
        receivers
            .into_iter()
            .map(|r| result(r).unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let elapsed = started.elapsed();
    let bytes = results.into_iter().sum::<io::Result<u64>>()?;
    Ok(Throughput { bytes, elapsed })
}

/// Opens a listener in `to` and a connection to it from `from`; returns the client's and the server's socket.
fn connect(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
) -> Result<(TcpStream, TcpStream), TransferError> {
    let failed = |address, source| TransferError::NotConnected { address, source };
    let wanted = SocketAddr::new(address, 0);
    let listener = to
        .run(|| TcpListener::bind(wanted))
        .and_then(|bound| bound)
        .map_err(|error| failed(wanted, error))?;
    let address = listener.local_addr()?;
    let client = from
        .run(|| TcpStream::connect_timeout(&address, STALL))
        .and_then(|connected| connected)
        .map_err(|error| failed(address, error))?;
    // The kernel has completed the handshake, unless another machine answered for that address.
    sys::wait_readable(listener.as_fd(), STALL)?;
    listener.set_nonblocking(true)?;
    let (server, _) = listener.accept().map_err(|error| failed(address, error))?;
    server.set_nonblocking(false)?;
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(STALL))?;
        socket.set_write_timeout(Some(STALL))?;
    }
    Ok((client, server))
}

/// Sends the pattern and returns its checksum and the one that the receiver sends back.
fn send(mut socket: TcpStream, bytes: u64) -> io::Result<(u64, u64)> {
    let (mut pattern, mut checksum) = (Pattern::new(SEED), Checksum::default());
    let mut block = vec![0; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        let part = &mut block[..length];
        pattern.fill(part);
        checksum.update(part);
        socket.write_all(part)?;
        left -= length as u64;
    }
    socket.shutdown(Shutdown::Write)?;
    let mut confirmed = [0; 8];
    socket.read_exact(&mut confirmed)?;
    Ok((checksum.value(), u64::from_be_bytes(confirmed)))
}

/// Receives until the sender closes, compares with the pattern, and sends the checksum back.
fn receive(mut socket: TcpStream, bytes: u64) -> Result<u64, TransferError> {
    let (mut pattern, mut checksum) = (Pattern::new(SEED), Checksum::default());
    let (mut block, mut expected) = (Vec::with_capacity(BLOCK), vec![0; BLOCK]);
    let mut received = 0;
    loop {
        block.clear();
        let length = (&mut socket).take(BLOCK as u64).read_to_end(&mut block)?;
        if length == 0 {
            break;
        }
        let expected = &mut expected[..length];
        pattern.fill(expected);
        if let Some(wrong) = block.iter().zip(&*expected).position(|(got, wanted)| got != wanted) {
            return Err(TransferError::Altered { offset: Some(received + wrong as u64) });
        }
        checksum.update(&block);
        received += length as u64;
    }
    if received != bytes {
        return Err(TransferError::Short { received, expected: bytes });
    }
    socket.write_all(&checksum.value().to_be_bytes())?;
    Ok(checksum.value())
}

/// Sends the same block repeatedly until `deadline`.
fn flood(mut socket: TcpStream, deadline: Instant) {
    let block = vec![0x5a; BLOCK];
    while Instant::now() < deadline {
        // The receiver reports what breaks the connection.
        if socket.write_all(&block).is_err() {
            return;
        }
    }
}

/// Counts the bytes until the sender closes.
fn drain(mut socket: TcpStream) -> io::Result<u64> {
    let mut block = vec![0; 4 * BLOCK];
    let mut bytes = 0;
    loop {
        match socket.read(&mut block)? {
            0 => return Ok(bytes),
            n => bytes += n as u64,
        }
    }
}
