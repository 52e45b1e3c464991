//! The changes of the external interface as a stream, once they have settled.
//!
//! ```text
//!              relevant notification           quiet for 50 ms
//!  listening ───────────────────────▶ settling ───────────────▶ observe ── changed? yield
//!      ▲                               ▲    │ notification          │
//!      │                               └────┘                       │
//!      └────────────────────────────────────────────────────────────┘ or observe again after a pause
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use flannel_core::{BackendError, ExternalInterface, ExternalUpdate};
use flannel_netlink::{Monitor, Namespace, Notification};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, timeout_at};

/// An address is replaced in several steps within a moment of each other. The states between them are not reported.
const QUIET: Duration = Duration::from_millis(50);

/// If notifications never pause, the interface is observed after this time.
const MAX_SETTLE_TIME: Duration = Duration::from_millis(500);

/// The pause before a broken monitor is reopened.
const RETRY: Duration = Duration::from_secs(1);

/// The state of the host at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Observation {
    /// The state is certain.
    Current {
        /// The interface, or the last usable state of it.
        external: ExternalInterface,
        /// Why the interface or its address is lost, if it is.
        lost: Option<String>,
    },
    /// The state may change back: observe again after this pause, unless a notification comes first.
    Unsettled(Duration),
}

/// Watches the external interface.
///
/// `observe` reads the host, given the last known interface, when a link, an address or a route of the namespace changed
/// that may concern the interface, and once when the stream is first polled. It may block for as long as reading the
/// kernel's tables takes. The stream never ends.
pub(super) fn watch(
    namespace: Namespace,
    known: ExternalInterface,
    observe: impl FnMut(&ExternalInterface) -> Observation + Send + 'static,
) -> Result<BoxStream<'static, ExternalUpdate>, BackendError> {
    let monitor = Some(open_monitor(&namespace)?);
    let observe_at = Some(Instant::now());
    let updates = VecDeque::new();
    let watch = InterfaceWatch { namespace, monitor, known, lost: None, observe, observe_at, updates };
    Ok(stream::unfold(watch, |mut watch| async {
        let update = watch.next().await;
        Some((update, watch))
    })
    .boxed())
}

struct InterfaceWatch<F> {
    namespace: Namespace,
    /// Absent if the monitor broke and could not be reopened yet.
    monitor: Option<Monitor>,
    known: ExternalInterface,
    lost: Option<String>,
    observe: F,
    /// When to observe without a notification.
    observe_at: Option<Instant>,
    /// Updates to yield.
    updates: VecDeque<ExternalUpdate>,
}

impl<F: FnMut(&ExternalInterface) -> Observation> InterfaceWatch<F> {
    async fn next(&mut self) -> ExternalUpdate {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return update;
            }
            self.wait().await;
            self.observe_at = None;
            match (self.observe)(&self.known) {
                Observation::Current { external, lost } => self.update(external, lost),
                Observation::Unsettled(pause) => self.observe_at = Some(Instant::now() + pause),
            }
        }
    }

    fn update(&mut self, external: ExternalInterface, lost: Option<String>) {
        if external != self.known || (self.lost.is_some() && lost.is_none()) {
            self.known = external.clone();
            self.lost = None;
            self.updates.push_back(ExternalUpdate::Changed(external));
        }
        if lost != self.lost {
            self.updates.extend(lost.clone().map(ExternalUpdate::Lost));
            self.lost = lost;
        }
    }

    /// Waits until there is a reason to observe the host.
    async fn wait(&mut self) {
        let Some(monitor) = &mut self.monitor else {
            tokio::time::sleep(RETRY).await;
            self.monitor = open_monitor(&self.namespace).ok();
            return;
        };
        let settled = async {
            while !may_concern(&monitor.next().await?, &self.known) {}
            settle(monitor).await
        };
        let settled = match self.observe_at {
            Some(at) => timeout_at(at, settled).await.unwrap_or(Ok(())),
            None => settled.await,
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "cannot watch the external interface; trying again in 1s");
            self.monitor = None;
        }
    }
}

/// Waits until notifications pause.
async fn settle(monitor: &mut Monitor) -> Result<(), flannel_netlink::Error> {
    let deadline = Instant::now() + MAX_SETTLE_TIME;
    while let Ok(notification) = timeout_at(deadline.min(Instant::now() + QUIET), monitor.next()).await {
        notification?;
    }
    Ok(())
}

fn may_concern(notification: &Notification, known: &ExternalInterface) -> bool {
    match notification {
        Notification::Link { link, .. } => link.index == known.index || link.name == known.name,
        // Its address may move to another interface.
        Notification::Address { address, .. } => {
            address.index == known.index || known.addresses().any(|own| own == address.net.addr())
        }
        Notification::Neighbour { .. } | Notification::Fdb { .. } | Notification::Forwarding { .. } => false,
        Notification::Route { .. } | Notification::Overrun | _ => true,
    }
}

fn open_monitor(namespace: &Namespace) -> Result<Monitor, BackendError> {
    Monitor::open_for_connections(namespace).map_err(|error| BackendError::Kernel {
        object: "cannot open a kernel monitor".to_owned(),
        source: error.into(),
    })
}
