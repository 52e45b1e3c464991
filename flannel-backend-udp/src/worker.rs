//! The threads of the packet path: one from the device to the network, and one for each socket the other way.
//!
//! A thread waits until there is something, takes bursts until there is nothing, and looks once for each whether the
//! table is a new one and whether it is to end. It ends by itself only if what it reads from is broken, and says so.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::net::UdpSocket;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use flannel_netlink::Namespace;
use tokio::sync::Notify;

use crate::counters::UdpCounters;
use crate::peers::{Exchange, View};
use crate::sys;

mod inward;
mod limit;
mod outward;

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

/// What is broken, and so has to be made anew. A thread that panicked breaks nothing else: that it is over is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) device: bool,
    pub(crate) sockets: bool,
    /// Any thread is over.
    pub(crate) threads: bool,
}

#[derive(Debug, Default)]
struct Marks {
    device: AtomicBool,
    sockets: AtomicBool,
    threads: AtomicBool,
}

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// What threads that ended by themselves found broken.
    broken: Arc<Marks>,
    /// The threads see the other end hang up.
    stop: Option<PipeWriter>,
}

impl Workers {
    /// Starts the threads in a namespace, which they never leave.
    pub(crate) fn start(namespace: &Namespace, parts: &Parts) -> io::Result<Self> {
        let (ended, stop) = io::pipe()?;
        let ended = Arc::new(ended);
        let mut workers = Self { threads: Vec::new(), broken: Arc::default(), stop: Some(stop) };
        // A thread is born in the namespace of the one that starts it.
        namespace
            .run(|| {
                let device = |marks: &Marks| marks.device.store(true, Ordering::Relaxed);
                workers.spawn("flannel-udp-out", device, parts, &ended, |parts, ended, view| {
                    outward::run(&parts, &ended, view)
                })?;
                for index in 0..parts.sockets.len() {
                    let sockets = |marks: &Marks| marks.sockets.store(true, Ordering::Relaxed);
                    workers.spawn("flannel-udp-in", sockets, parts, &ended, move |parts, ended, view| {
                        inward::run(&parts, index, &ended, view)
                    })?;
                }
                Ok(())
            })?
            .map(|()| workers)
    }

    /// Tells what is broken, if any of them has ended by itself.
    pub(crate) fn broken(&self) -> Broken {
        let Marks { device, sockets, threads } = &*self.broken;
        // In this order: whoever sees that a thread is over sees why.
        let threads = threads.load(Ordering::Acquire);
        Broken {
            threads,
            device: threads && device.load(Ordering::Relaxed),
            sockets: threads && sockets.load(Ordering::Relaxed),
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        mark: impl FnOnce(&Marks) + Send + 'static,
        parts: &Parts,
        ended: &Arc<PipeReader>,
        run: impl FnOnce(Parts, Arc<PipeReader>, View) -> Result<(), String> + Send + 'static,
    ) -> io::Result<()> {
        let (parts, ended) = (parts.clone(), Arc::clone(ended));
        let view = View::new(Arc::clone(&parts.exchange));
        let (failure, broken) = (Arc::clone(&parts.failure), Arc::clone(&self.broken));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = sys::priority::set_nice(NICE) {
                tracing::debug!(%error, "the packet path has no precedence");
            }
            // Nothing that a thread leaves behind is used again, so that a panic costs no more than a broken device.
            let what = match panic::catch_unwind(AssertUnwindSafe(|| run(parts, ended, view))) {
                Ok(Ok(())) => return,
                Ok(Err(what)) => {
                    mark(&broken);
                    what
                }
                Err(_) => "a thread of the packet path panicked".to_owned(),
            };
            // In this order: whoever is told finds it so.
            broken.threads.store(true, Ordering::Release);
            failure.tell(what);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // It cannot have panicked outside of what is caught.
            let _ = thread.join();
        }
    }
}
