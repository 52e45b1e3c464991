//! Following the external interface: what becomes of it is told when it has settled.
//!
//! ```text
//!            a notification that concerns it           quiet for a moment
//!  listening ─────────────────────────▶ settling ──────────────────▶ look: another one? told
//!      ▲                                  ▲   │ more notifications            │
//!      │                                  └───┘                         │
//!      └────────────────────────────────────────────────────────────────┘ or look again after a while
//! ```

use std::time::Duration;

use flannel_core::{BackendError, ExternalInterface};
use flannel_netlink::{Monitor, Namespace, Notification};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, timeout_at};

/// An address is replaced in several steps, which come within a moment of each other; what is between them is nothing
/// to follow.
const QUIET: Duration = Duration::from_millis(50);

/// Where it never becomes quiet, what there is counts after this time.
const LONGEST: Duration = Duration::from_millis(500);

/// How long after a failure the kernel is listened to again.
const RETRY: Duration = Duration::from_secs(1);

/// What a look at the host found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// This is the external interface now.
    Found(ExternalInterface),
    /// It cannot be told yet; if nothing happens before, look again after this time.
    Later(Duration),
    /// Nothing that can be used: the last one that was good stays.
    Nothing,
}

/// Follows the external interface of a network: gives each state that is not the one before, as `look` finds it.
///
/// `look` is asked when a link, an address or a default route of the namespace changed that may have to do with the
/// interface, and given what is known so far. It may block as briefly as reading the kernel's tables takes. The stream
/// never ends, and looks once when it is first polled.
///
/// ```no_run
/// use flannel_dataplane::{Look, external_interface, follow_external};
/// use flannel_dataplane::Namespace;
///
/// // Whatever has the name eth0, with whatever address it has.
/// let here = Namespace::current()?;
/// let eth0 = external_interface(&here, "eth0")?;
/// let namespace = here.clone();
/// let changes = follow_external(here, eth0, move |_| {
///     external_interface(&namespace, "eth0").map_or(Look::Nothing, Look::Found)
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`BackendError::Kernel`] if the kernel cannot be listened to.
pub fn follow_external(
    namespace: Namespace,
    known: ExternalInterface,
    look: impl FnMut(&ExternalInterface) -> Look + Send + 'static,
) -> Result<BoxStream<'static, ExternalInterface>, BackendError> {
    let monitor = Some(open(&namespace)?);
    let follow = Follow { namespace, monitor, known, look, again: Some(Instant::now()) };
    Ok(stream::unfold(follow, |mut follow| async {
        let now = follow.next().await;
        Some((now, follow))
    })
    .boxed())
}

struct Follow<F> {
    namespace: Namespace,
    /// Gone if it broke and could not be opened again yet.
    monitor: Option<Monitor>,
    known: ExternalInterface,
    look: F,
    /// When to look though nothing is heard.
    again: Option<Instant>,
}

impl<F: FnMut(&ExternalInterface) -> Look> Follow<F> {
    async fn next(&mut self) -> ExternalInterface {
        loop {
            self.wait().await;
            self.again = None;
            match (self.look)(&self.known) {
                Look::Found(now) if now != self.known => {
                    self.known = now.clone();
                    return now;
                }
                Look::Later(pause) => self.again = Some(Instant::now() + pause),
                Look::Found(_) | Look::Nothing => {}
            }
        }
    }

    /// Waits until there is reason to look.
    async fn wait(&mut self) {
        let Some(monitor) = &mut self.monitor else {
            tokio::time::sleep(RETRY).await;
            self.monitor = open(&self.namespace).ok();
            return;
        };
        let heard = async {
            while !concerns(&monitor.next().await?, &self.known) {}
            settle(monitor).await
        };
        let heard = match self.again {
            Some(again) => timeout_at(again, heard).await.unwrap_or(Ok(())),
            None => heard.await,
        };
        if let Err(error) = heard {
            tracing::warn!(%error, "the external interface is not followed for a moment");
            self.monitor = None;
        }
    }
}

/// Waits until it is quiet.
async fn settle(monitor: &mut Monitor) -> Result<(), flannel_netlink::Error> {
    let longest = Instant::now() + LONGEST;
    while let Ok(heard) = timeout_at(longest.min(Instant::now() + QUIET), monitor.next()).await {
        heard?;
    }
    Ok(())
}

/// Tells whether a notification may have to do with an interface.
fn concerns(notification: &Notification, known: &ExternalInterface) -> bool {
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

fn open(namespace: &Namespace) -> Result<Monitor, BackendError> {
    Monitor::open_for_connections(namespace).map_err(|error| BackendError::Kernel {
        object: "cannot listen to the kernel".to_owned(),
        source: error.into(),
    })
}
