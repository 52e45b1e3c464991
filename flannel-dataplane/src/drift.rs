//! The kernel's notices, taken in bunches, by a monitor that is opened again if it breaks.

use std::time::{Duration, Instant};

use flannel_core::{BackendError, ObjectFailure, SyncReport};
use flannel_netlink::{Monitor, Namespace, Notification};

use crate::neighbour_reprobe::NeighbourReprobe;
use crate::tables::{Kernel, no_socket};

/// What a backend hears from the kernel.
#[derive(Debug)]
pub struct DriftMonitor {
    namespace: Namespace,
    kernel: Kernel,
    /// Gone if it broke and could not be opened again yet.
    monitor: Option<Monitor>,
    neighbour_reprobe: NeighbourReprobe,
}

/// What a backend keeps in order and the kernel tells about.
pub trait NoticeHandler {
    /// Takes in a notice, and says what it means here if it means anything.
    fn notice(&mut self, notice: &Notification) -> Option<String>;

    /// Hears that anything may have changed.
    fn distrust(&mut self);
}

/// How long after a failure the monitor is opened again.
const RETRY: Duration = Duration::from_secs(1);

/// Notices taken at once, so that a storm leads to one pass and not to one for each; bounded, so that a storm without
/// end does not keep the pass from coming.
const NOTICES_AT_ONCE: usize = 4096;

impl DriftMonitor {
    /// Opens a request socket, and a monitor that is silent about what is done through it. The interface is the
    /// external one.
    pub fn open(namespace: Namespace, interface: &str) -> Result<(Self, Kernel), BackendError> {
        let kernel = Kernel::open_in(&namespace)?;
        let monitor = Some(open_monitor(&namespace, &kernel)?);
        let neighbour_reprobe = NeighbourReprobe::new(interface);
        Ok((Self { namespace, kernel: kernel.clone(), monitor, neighbour_reprobe }, kernel))
    }

    /// Goes on with another external interface.
    pub fn update_interface(&mut self, interface: &str) {
        self.neighbour_reprobe.update_interface(interface);
    }

    /// Opens the monitor again if it is gone, and has the neighbours asked for again if the interface is back.
    pub fn mend(&mut self, now: Instant) -> SyncReport {
        let mut report = SyncReport::default();
        report.retry_in = self.neighbour_reprobe.act(&self.kernel, now);
        if self.monitor.is_none() {
            match open_monitor(&self.namespace, &self.kernel) {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => {
                    let object = "the monitor of the kernel's notices".to_owned();
                    report.failed.push(ObjectFailure::new(object, flannel_core::chain(&error)));
                    report.retry_in = Some(report.retry_in.map_or(RETRY, |pause| pause.min(RETRY)));
                }
            }
        }
        report
    }

    /// Waits until a notice means something to a listener, and says what. May be dropped at any time without losing
    /// a notice.
    pub async fn wait_for_drift<L: NoticeHandler>(&mut self, listeners: &mut [L]) -> String {
        loop {
            let notices = match self.next().await {
                Ok(notices) => notices,
                Err(broken) => {
                    listeners.iter_mut().for_each(L::distrust);
                    return broken;
                }
            };
            let (mut what, now) = (None, Instant::now());
            for notice in &notices {
                what = what.or(self.neighbour_reprobe.notice(notice, now));
                for listener in &mut *listeners {
                    // Each one is to hear it, whatever came before.
                    let heard = listener.notice(notice);
                    what = what.or(heard);
                }
            }
            if let Some(what) = what {
                return what;
            }
        }
    }

    /// Waits for notices. May be dropped at any time without losing one.
    ///
    /// # Errors
    ///
    /// What broke the monitor: anything may have changed.
    async fn next(&mut self) -> Result<Vec<Notification>, String> {
        let Some(monitor) = &mut self.monitor else {
            return std::future::pending().await;
        };
        match monitor.next().await {
            Ok(notice) => Ok(drain(monitor, notice)),
            Err(error) => {
                self.monitor = None;
                Err(format!("the monitor of the kernel's notices broke: {error}"))
            }
        }
    }
}

fn drain(monitor: &mut Monitor, first: Notification) -> Vec<Notification> {
    let mut notices = vec![first];
    while notices.len() < NOTICES_AT_ONCE {
        // An error shows again at the next wait.
        let Ok(Some(notice)) = monitor.try_next() else {
            break;
        };
        notices.push(notice);
    }
    notices
}

fn open_monitor(namespace: &Namespace, kernel: &Kernel) -> Result<Monitor, BackendError> {
    let mut monitor = Monitor::open_in(namespace).map_err(no_socket)?;
    monitor.ignore_changes_of(&[kernel.lock().port_id()]).map_err(no_socket)?;
    Ok(monitor)
}
