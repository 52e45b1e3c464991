//! The packet threads: a main worker, and one thread for each queue that it can lease out.
//!
//! Under light load the main worker serves the device and all sockets, so that a reply leaves without waking another
//! thread. Under heavy load it leases the device and the further sockets to their own threads, which return them when the
//! load is light again.
//!
//! A thread waits for packets, moves bursts until the queue is empty, and checks for a new routing table and for shutdown
//! once per burst. It exits early only if its queue is broken, and reports that.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::net::UdpSocket;
use std::os::fd::BorrowedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use flannel_netlink::Namespace;
use tokio::sync::Notify;

use crate::counters::UdpCounters;
use crate::peers::{CachedRouting, SharedRouting};
use crate::sys;
use queue_lease::QueueLease;

mod inbound;
mod main_worker;
mod outbound;
mod queue_lease;
mod rate_limit;

/// What the threads share.
#[derive(Clone, Debug)]
pub(crate) struct PathParts {
    pub(crate) tun: Arc<File>,
    pub(crate) sockets: Vec<Arc<UdpSocket>>,
    pub(crate) exchange: Arc<SharedRouting>,
    pub(crate) counters: UdpCounters,
    pub(crate) failure: Arc<FailureSignal>,
    pub(crate) offloads: Offloads,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "only tests use it")]
impl PathParts {
    /// Returns parts with a silent device and no sockets.
    fn without_packets() -> Self {
        Self {
            tun: Arc::new(File::open("/dev/null").unwrap()),
            sockets: Vec::new(),
            exchange: Arc::default(),
            counters: UdpCounters::default(),
            failure: Arc::default(),
            offloads: Offloads::NONE,
        }
    }
}

/// The offloads of the packet path. All are enabled by default, and disabled where the kernel rejects them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offloads {
    /// TCP packets of up to 64 KiB from and to the device (TSO).
    pub device_tcp: bool,
    /// UDP packets of up to 64 KiB from and to the device (USO).
    pub device_udp: bool,
    /// Sends bursts of datagrams (`UDP_SEGMENT`).
    pub send_bursts: bool,
    /// Receives bursts of datagrams (`UDP_GRO`).
    pub receive_bursts: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        Self { device_tcp: true, device_udp: true, send_bursts: true, receive_bursts: true }
    }
}

impl Offloads {
    /// No offloads: one packet per system call.
    pub const NONE: Self =
        Self { device_tcp: false, device_udp: false, send_bursts: false, receive_bursts: false };
}

/// Reports a failure in a thread to the backend.
#[derive(Debug, Default)]
pub(crate) struct FailureSignal {
    what: Mutex<Option<String>>,
    notify: Notify,
}

impl FailureSignal {
    fn report(&self, what: String) {
        self.what.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        self.notify.notify_one();
    }

    /// Waits for a failure. Cancel safe.
    pub(crate) async fn wait(&self) -> String {
        loop {
            if let Some(what) = self.what.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return what;
            }
            self.notify.notified().await;
        }
    }
}

/// The nice value of the threads. They do what the kernel does in softirq context for other tunnels, and every receiver of
/// a packet waits for them.
const NICE: i32 = -15;

/// One direction of the packet path, from one queue.
trait PacketQueue {
    /// Returns the descriptor of the queue that it reads.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Moves a bounded number of available packets without blocking.
    fn step(&mut self) -> Result<Step, PathFault>;

    /// Returns the fault of a queue that has closed.
    fn closed(&self) -> PathFault;
}

/// The result of one step.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// The number of successful reads.
    moved: usize,
    /// The bytes read.
    bytes: usize,
    /// Whether more may be available.
    is_full: bool,
}

impl Step {
    /// Returns whether it moved more than request-response traffic does.
    fn is_large(self) -> bool {
        self.moved >= 8 || self.bytes >= 16_384
    }
}

/// A broken device or socket, with the reason.
#[derive(Debug)]
enum PathFault {
    Device(String),
    Sockets(String),
}

/// What the backend must create again. A panic in a thread breaks only that thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BrokenParts {
    pub(crate) device: bool,
    pub(crate) sockets: bool,
    /// Whether any thread has ended.
    pub(crate) threads: bool,
}

/// The running threads. Dropping this ends them.
#[derive(Debug)]
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// What threads that ended early reported as broken.
    broken: Arc<Mutex<BrokenParts>>,
    /// Closing it tells the threads to end.
    stop: Option<PipeWriter>,
    leases: Vec<Arc<QueueLease>>,
}

/// The context of each thread.
struct ThreadContext {
    parts: PathParts,
    /// Readable when the threads must end.
    ended: Arc<PipeReader>,
    /// The lease of the device, and of each socket except the first.
    leases: Vec<Arc<QueueLease>>,
    /// The number of large steps of the main worker.
    large: Arc<AtomicU64>,
}

impl ThreadContext {
    fn view(&self) -> CachedRouting {
        CachedRouting::new(Arc::clone(&self.parts.exchange))
    }
}

impl Workers {
    /// Starts the threads in a network namespace.
    pub(crate) fn start(namespace: &Namespace, parts: &PathParts) -> io::Result<Self> {
        let (ended, stop) = io::pipe()?;
        let ended = Arc::new(ended);
        let (returned, returns) = io::pipe()?;
        let returns = Arc::new(returns);
        let leases: Vec<_> =
            (0..parts.sockets.len()).map(|_| Arc::new(QueueLease::new(Arc::clone(&returns)))).collect();
        let mut workers =
            Self { threads: Vec::new(), broken: Arc::default(), stop: Some(stop), leases: leases.clone() };
        let large = Arc::<AtomicU64>::default();
        let work = || ThreadContext {
            parts: parts.clone(),
            ended: Arc::clone(&ended),
            leases: leases.clone(),
            large: Arc::clone(&large),
        };
        // A thread inherits the namespace of the thread that spawns it.
        namespace
            .run(|| {
                workers.spawn("flannel-udp", work(), move |work| main_worker::run(work, &returned))?;
                for index in 0..leases.len() {
                    let name = if index == 0 { "flannel-udp-out" } else { "flannel-udp-in" };
                    workers.spawn(name, work(), move |work| {
                        match (index, work.parts.sockets.get(index)) {
                            (1.., Some(socket)) => queue_lease::serve(
                                work,
                                index,
                                &mut inbound::Inbound::new(&work.parts, socket, work.view()),
                            ),
                            _ => queue_lease::serve(
                                work,
                                index,
                                &mut outbound::Outbound::new(&work.parts, work.view()),
                            ),
                        }
                    })?;
                }
                Ok(())
            })?
            .map(|()| workers)
    }

    /// Returns what is broken, if a thread has ended early.
    pub(crate) fn broken(&self) -> BrokenParts {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: ThreadContext,
        run: impl FnOnce(&ThreadContext) -> Result<(), PathFault> + Send + 'static,
    ) -> io::Result<()> {
        let (failure, broken) = (Arc::clone(&work.parts.failure), Arc::clone(&self.broken));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = sys::priority::set_nice(NICE) {
                tracing::debug!(%error, "failed to raise the priority of the packet thread");
            }
            // Unwind safe: nothing that a panicking thread leaves behind is used again.
            let ended = panic::catch_unwind(AssertUnwindSafe(|| run(&work)));
            let mut now = broken.lock().unwrap_or_else(PoisonError::into_inner);
            let what = match ended {
                Ok(Ok(())) => return,
                Ok(Err(PathFault::Device(what))) => {
                    now.device = true;
                    what
                }
                Ok(Err(PathFault::Sockets(what))) => {
                    now.sockets = true;
                    what
                }
                Err(_) => "a packet thread panicked".to_owned(),
            };
            now.threads = true;
            drop(now);
            // Last, so that the receiver of the signal sees the flags.
            failure.report(what);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.leases.iter().for_each(|lease| lease.end());
        for thread in self.threads.drain(..) {
            // `catch_unwind` covers everything that can panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "simulates a defect")]
    fn a_panicking_thread_is_reported_and_breaks_nothing_else() {
        let parts = PathParts::without_packets();
        let (ended, stop) = io::pipe().unwrap();
        let failure = Arc::clone(&parts.failure);
        let work = ThreadContext { parts, ended: Arc::new(ended), leases: Vec::new(), large: Arc::default() };
        let mut workers =
            Workers { threads: Vec::new(), broken: Arc::default(), stop: Some(stop), leases: Vec::new() };
        assert_eq!(workers.broken(), BrokenParts::default());
        workers.spawn("panics", work, |_| panic!("a defect")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(failure.wait()), "a packet thread panicked");
        assert_eq!(workers.broken(), BrokenParts { threads: true, device: false, sockets: false });
    }
}
