//! The threads of the packet path: a first one, and one each for what it gives away.
//!
//! While there is little to do, the first thread serves device and sockets alike: an answer that is there when its question
//! was delivered goes out at once, and no other thread has to be woken for it. When much is moved, each of the others
//! takes what is its own, and gives it back when it is light work again.
//!
//! A thread waits until there is something, takes bursts until there is nothing, and looks once for each whether the
//! table is a new one and whether it is to end. It ends by itself only if what it reads from is broken, and says so.

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
use crate::peers::{Exchange, View};
use crate::sys;
use turn::Turn;

mod first;
mod inward;
mod limit;
mod outward;
mod turn;

/// What the threads work with.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) tun: Arc<File>,
    pub(crate) sockets: Vec<Arc<UdpSocket>>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) counters: UdpCounters,
    pub(crate) failure: Arc<Failure>,
    pub(crate) offloads: Offloads,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "only tests use it")]
impl Parts {
    /// A device from which nothing comes, and no sockets.
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

/// Which bursts the packet path makes and takes. All are on unless switched off, and are switched off where the kernel
/// refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offloads {
    /// Packets from and to the device of up to 64 KiB of TCP.
    pub device_tcp: bool,
    /// Packets from and to the device of up to 64 KiB of UDP.
    pub device_udp: bool,
    /// Sending bursts of datagrams (`UDP_SEGMENT`).
    pub send_bursts: bool,
    /// Receiving bursts of datagrams (`UDP_GRO`).
    pub receive_bursts: bool,
}

impl Default for Offloads {
    fn default() -> Self {
        Self { device_tcp: true, device_udp: true, send_bursts: true, receive_bursts: true }
    }
}

impl Offloads {
    /// None at all: one packet at a time everywhere.
    pub const NONE: Self =
        Self { device_tcp: false, device_udp: false, send_bursts: false, receive_bursts: false };
}

/// What broke in a thread, for the backend to mend.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    what: Mutex<Option<String>>,
    told: Notify,
}

impl Failure {
    fn tell(&self, what: String) {
        self.what.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
        self.told.notify_one();
    }

    /// Waits until something breaks. May be dropped at any time without losing it.
    pub(crate) async fn wait(&self) -> String {
        loop {
            if let Some(what) = self.what.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return what;
            }
            self.told.notified().await;
        }
    }
}

/// The threads do what the kernel does in interrupts for other tunnels, before any program: they take no more time than
/// packets need, and whoever waits for a packet waits for them.
const NICE: i32 = -15;

/// One way through the packet path.
trait Path {
    /// What it reads from.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Moves what is there, without waiting, at most so much that others are served soon.
    fn step(&mut self) -> Result<Step, Fault>;

    /// Why nothing will ever be read again.
    fn over(&self) -> Fault;
}

/// What a step moved.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// So many reads gave something.
    moved: usize,
    /// What they gave.
    bytes: usize,
    /// There may be more.
    is_full: bool,
}

impl Step {
    /// Whether it moved more at once than comes of questions and answers.
    fn is_large(self) -> bool {
        self.moved >= 8 || self.bytes >= 16_384
    }
}

/// What broke, and how it showed.
#[derive(Debug)]
enum Fault {
    Device(String),
    Sockets(String),
}

/// What is broken, and so has to be made anew. A thread that panicked breaks nothing else: that it is over is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) device: bool,
    pub(crate) sockets: bool,
    /// Any thread is over.
    pub(crate) threads: bool,
}

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// What threads that ended by themselves found broken.
    broken: Arc<Mutex<Broken>>,
    /// The threads see the other end hang up.
    stop: Option<PipeWriter>,
    turns: Vec<Arc<Turn>>,
}

/// What every thread has.
struct Work {
    parts: Parts,
    /// Hangs up when the threads are to end.
    ended: Arc<PipeReader>,
    /// Of the device, and of each socket but the first.
    turns: Vec<Arc<Turn>>,
    /// How many large steps the first thread made.
    large: Arc<AtomicU64>,
}

impl Work {
    fn view(&self) -> View {
        View::new(Arc::clone(&self.parts.exchange))
    }
}

impl Workers {
    /// Starts the threads in a namespace, which they never leave.
    pub(crate) fn start(namespace: &Namespace, parts: &Parts) -> io::Result<Self> {
        let (ended, stop) = io::pipe()?;
        let ended = Arc::new(ended);
        let (given_back, giver) = io::pipe()?;
        let giver = Arc::new(giver);
        let turns: Vec<_> =
            (0..parts.sockets.len()).map(|_| Arc::new(Turn::new(Arc::clone(&giver)))).collect();
        let mut workers =
            Self { threads: Vec::new(), broken: Arc::default(), stop: Some(stop), turns: turns.clone() };
        let large = Arc::<AtomicU64>::default();
        let work = || Work {
            parts: parts.clone(),
            ended: Arc::clone(&ended),
            turns: turns.clone(),
            large: Arc::clone(&large),
        };
        // A thread is born in the namespace of the one that starts it.
        namespace
            .run(|| {
                workers.spawn("flannel-udp", work(), move |work| first::run(work, &given_back))?;
                for index in 0..turns.len() {
                    let name = if index == 0 { "flannel-udp-out" } else { "flannel-udp-in" };
                    workers.spawn(name, work(), move |work| {
                        match (index, work.parts.sockets.get(index)) {
                            (1.., Some(socket)) => turn::serve(
                                work,
                                index,
                                &mut inward::Inward::new(&work.parts, socket, work.view()),
                            ),
                            _ => {
                                turn::serve(work, index, &mut outward::Outward::new(&work.parts, work.view()))
                            }
                        }
                    })?;
                }
                Ok(())
            })?
            .map(|()| workers)
    }

    /// Tells what is broken, if any of them has ended by itself.
    pub(crate) fn broken(&self) -> Broken {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: Work,
        run: impl FnOnce(&Work) -> Result<(), Fault> + Send + 'static,
    ) -> io::Result<()> {
        let (failure, broken) = (Arc::clone(&work.parts.failure), Arc::clone(&self.broken));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = sys::priority::set_nice(NICE) {
                tracing::debug!(%error, "the packet path has no precedence");
            }
            // Nothing that a thread leaves behind is used again, so that a panic costs no more than a broken device.
            let ended = panic::catch_unwind(AssertUnwindSafe(|| run(&work)));
            let mut now = broken.lock().unwrap_or_else(PoisonError::into_inner);
            let what = match ended {
                Ok(Ok(())) => return,
                Ok(Err(Fault::Device(what))) => {
                    now.device = true;
                    what
                }
                Ok(Err(Fault::Sockets(what))) => {
                    now.sockets = true;
                    what
                }
                Err(_) => "a thread of the packet path panicked".to_owned(),
            };
            now.threads = true;
            drop(now);
            // Last: whoever is told finds it so.
            failure.tell(what);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.turns.iter().for_each(|turn| turn.end());
        for thread in self.threads.drain(..) {
            // It cannot have panicked outside of what is caught.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "what a defect would do")]
    fn a_thread_that_panics_is_told_of_and_breaks_nothing_else() {
        let parts = Parts::without_packets();
        let (ended, stop) = io::pipe().unwrap();
        let failure = Arc::clone(&parts.failure);
        let work = Work { parts, ended: Arc::new(ended), turns: Vec::new(), large: Arc::default() };
        let mut workers =
            Workers { threads: Vec::new(), broken: Arc::default(), stop: Some(stop), turns: Vec::new() };
        assert_eq!(workers.broken(), Broken::default());
        workers.spawn("panics", work, |_| panic!("a defect")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(failure.wait()), "a thread of the packet path panicked");
        assert_eq!(workers.broken(), Broken { threads: true, device: false, sockets: false });
    }
}
