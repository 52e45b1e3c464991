//! Captures the packets on a link as typed values.
//!
//! A capture has a packet socket (`packet(7)`) in the namespace of the link and a thread that drains it, so nothing is
//! lost while the test does other work.

use crate::sys;
use flannel_netlink::Namespace;
use packet::Frame;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

mod decode;
mod display;
pub(crate) mod packet;
mod reader;

/// How long the thread waits for a frame before it checks whether to stop.
const TICK: Duration = Duration::from_millis(10);
/// Room for several thousand frames.
const BUFFER: i32 = 32 * 1024 * 1024;
/// More than the largest frame that segmentation offload makes on a link with the default limit of 64 KiB.
const MAX_FRAME: usize = 128 * 1024;

/// A running capture. Dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    socket: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// A captured packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Captured {
    /// When it was read, shortly after it passed the link.
    pub at: Instant,
    /// Whether the namespace sent it, rather than received it, over the link.
    pub outgoing: bool,
    /// The bytes from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The same, decoded.
    pub frame: Frame,
}

/// Writes the direction and the frame on one line.
impl std::fmt::Display for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", if self.outgoing { "Out" } else { "In " }, self.frame)
    }
}

impl Capture {
    /// Starts capturing every packet that the link called `link` in `namespace` sends and receives.
    ///
    /// Packets that pass after this returns are captured.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW, `ENODEV` if the link does not exist.
    pub fn start(namespace: &Namespace, link: &str) -> io::Result<Self> {
        let socket = Arc::new(namespace.run(|| open(link))??);
        let shared = Arc::new(Shared::default());
        let thread = {
            let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
            thread::Builder::new().name("capture".to_owned()).spawn(move || shared.collect(&socket))?
        };
        Ok(Self { shared, socket, thread: Some(thread) })
    }

    /// Waits for a packet that `wanted` accepts, including those captured before.
    #[must_use]
    pub fn wait_for(&self, limit: Duration, mut wanted: impl FnMut(&Captured) -> bool) -> Option<Captured> {
        let deadline = Instant::now() + limit;
        let mut seen = 0;
        let mut packets = self.shared.packets.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(packet) = packets.iter().skip(seen).find(|packet| wanted(packet)) {
                return Some(packet.clone());
            }
            seen = packets.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            packets = self.shared.grown.wait_timeout(packets, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the packets captured so far.
    #[must_use]
    pub fn packets(&self) -> Vec<Captured> {
        self.shared.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the capture and returns all packets that passed before this call.
    ///
    /// # Errors
    /// Fails if the kernel dropped packets, because a capture with gaps proves nothing.
    pub fn stop(mut self) -> io::Result<Vec<Captured>> {
        self.end();
        let dropped = sys::frames_dropped(self.socket.as_fd())?;
        if dropped > 0 {
            return Err(io::Error::other(format!("{dropped} packets passed too fast to be captured")));
        }
        Ok(std::mem::take(&mut *self.shared.packets.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn end(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Opens a packet socket on a link of the calling thread's namespace.
fn open(link: &str) -> io::Result<OwnedFd> {
    let index = sys::link_index(link)?;
    // Protocol 0 receives nothing, so no frame of another link can slip in before the socket is bound.
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
    sys::bind_to_link(socket.as_fd(), index)?;
    Ok(socket)
}

/// The state shared by the thread and the test.
#[derive(Debug, Default)]
struct Shared {
    packets: Mutex<Vec<Captured>>,
    grown: Condvar,
    ending: AtomicBool,
}

impl Shared {
    /// Moves frames from the socket to the list until the capture ends and the socket is empty.
    fn collect(&self, socket: &OwnedFd) {
        let mut buf = vec![0; MAX_FRAME];
        loop {
            // Read before the socket: packets that passed before the stop are in the socket by now.
            let ending = self.ending.load(Ordering::Acquire);
            loop {
                match sys::receive_frame(socket.as_fd(), &mut buf) {
                    Ok((length, kind)) => self.push(buf.get(..length).unwrap_or(&buf), kind),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // ENETDOWN is reported once, when the link goes down or away.
                    Err(error) => {
                        tracing::debug!(%error, "capture interrupted");
                        break;
                    }
                }
            }
            if ending {
                return;
            }
            drop(sys::wait_readable(socket.as_fd(), TICK));
        }
    }

    fn push(&self, bytes: &[u8], kind: u8) {
        // Links without Ethernet headers are not supported.
        let Some(frame) = Frame::decode(bytes) else { return };
        let packet = Captured {
            at: Instant::now(),
            outgoing: kind == libc::PACKET_OUTGOING,
            bytes: bytes.to_vec(),
            frame,
        };
        tracing::trace!(%packet, "captured");
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
        self.grown.notify_all();
    }
}
