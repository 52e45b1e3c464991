//! Detection of drift: kernel notifications in batches, from a monitor that is reopened if it breaks.

use std::time::{Duration, Instant};

use flannel_core::{BackendError, ObjectFailure, SyncReport};
use flannel_netlink::{Monitor, Namespace, Notification};

use crate::neighbour_reprobe::NeighbourReprobe;
use crate::netlink::{SharedNetlink, socket_error};

/// Waits for kernel notifications that concern a backend.
///
/// ```text
///  kernel ──notifications──▶ DriftMonitor ──each──▶ NotificationHandler: marks what may have changed as stale
///                           │
///                           └──▶ wait_for_drift returns the reason for a pass
/// ```
#[derive(Debug)]
pub struct DriftMonitor {
    namespace: Namespace,
    netlink: SharedNetlink,
    /// Absent if the monitor broke and could not be reopened yet.
    monitor: Option<Monitor>,
    reprobe: NeighbourReprobe,
}

/// Objects of a backend that kernel notifications may concern.
pub trait NotificationHandler {
    /// Handles a notification and returns what changed, if it concerns these objects.
    fn handle(&mut self, notification: &Notification) -> Option<String>;

    /// Makes the next pass read everything again.
    fn mark_stale(&mut self);
}

/// The pause before a broken monitor is reopened.
const RETRY: Duration = Duration::from_secs(1);

/// The largest number of notifications in one batch. A burst leads to one pass instead of one for each notification; the bound lets
/// passes happen during a burst that doesn't end.
const MAX_BATCH: usize = 4096;

impl DriftMonitor {
    /// Opens a request socket, and a monitor that ignores changes made through it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if the kernel refuses a socket.
    pub fn open(namespace: Namespace, interface: &str) -> Result<(Self, SharedNetlink), BackendError> {
        let netlink = SharedNetlink::open_in(&namespace)?;
        let monitor = Some(open_monitor(&namespace, &netlink)?);
        let reprobe = NeighbourReprobe::new(interface);
        Ok((Self { namespace, netlink: netlink.clone(), monitor, reprobe }, netlink))
    }

    /// Replaces the external interface.
    pub fn update_interface(&mut self, interface: &str) {
        self.reprobe.update_interface(interface);
    }

    /// Reopens a broken monitor and probes neighbours again if that is due.
    pub fn sync(&mut self, now: Instant) -> SyncReport {
        let mut report = SyncReport::default();
        report.retry_in = self.reprobe.run(&self.netlink, now);
        if self.monitor.is_none() {
            match open_monitor(&self.namespace, &self.netlink) {
                Ok(monitor) => self.monitor = Some(monitor),
                Err(error) => {
                    let object = "kernel monitor".to_owned();
                    report.failed.push(ObjectFailure::new(object, flannel_core::chain(&error)));
                    report.retry_in = Some(report.retry_in.map_or(RETRY, |pause| pause.min(RETRY)));
                }
            }
        }
        report
    }

    /// Waits until a handler reports a change and returns the first one. Cancel safe: no notification is lost.
    pub async fn wait_for_drift<H: NotificationHandler>(&mut self, handlers: &mut [H]) -> String {
        loop {
            let notifications = match self.next_batch().await {
                Ok(notifications) => notifications,
                Err(broken) => {
                    handlers.iter_mut().for_each(H::mark_stale);
                    return broken;
                }
            };
            let (mut change, now) = (None, Instant::now());
            for notification in &notifications {
                change = change.or(self.reprobe.handle(notification, now));
                for handler in &mut *handlers {
                    // Every handler needs every notification, whatever the others return.
                    let handled = handler.handle(notification);
                    change = change.or(handled);
                }
            }
            if let Some(change) = change {
                return change;
            }
        }
    }

    /// Waits for notifications. Cancel safe. The error says why the monitor broke; anything may have changed then.
    async fn next_batch(&mut self) -> Result<Vec<Notification>, String> {
        let Some(monitor) = &mut self.monitor else {
            return std::future::pending().await;
        };
        match monitor.next().await {
            Ok(notification) => Ok(drain(monitor, notification)),
            Err(error) => {
                self.monitor = None;
                Err(format!("the kernel monitor broke: {error}"))
            }
        }
    }
}

fn drain(monitor: &mut Monitor, first: Notification) -> Vec<Notification> {
    let mut notifications = vec![first];
    while notifications.len() < MAX_BATCH {
        // The next wait returns an error again.
        let Ok(Some(notification)) = monitor.try_next() else {
            break;
        };
        notifications.push(notification);
    }
    notifications
}

fn open_monitor(namespace: &Namespace, netlink: &SharedNetlink) -> Result<Monitor, BackendError> {
    let mut monitor = Monitor::open_in(namespace).map_err(socket_error)?;
    monitor.ignore_changes_of(&[netlink.lock().port_id()]).map_err(socket_error)?;
    Ok(monitor)
}
