//! What the service manager knows of starts and reloads.

use flannel_core::{Running, SubnetKey};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use crate::service_manager::{Notifier, log_failure};
use crate::text::subnets;

/// The progress of the start and of reloads, as the service manager knows it.
#[derive(Default)]
pub(super) struct ReloadState {
    /// The reload that a command asked for.
    reload: Option<BoxFuture<'static, ()>>,
    /// Whether the service manager waits for the end of a reload.
    is_reloading: bool,
    /// The subnet that the service manager knows.
    ready: Option<SubnetKey>,
}

impl ReloadState {
    pub(super) fn start(&mut self, reload: impl Future<Output = ()> + Send + 'static) {
        self.reload = Some(reload.boxed());
    }

    /// Waits for the end of a reload that a command asked for.
    pub(super) async fn finished(&mut self) {
        match &mut self.reload {
            Some(reload) => reload.await,
            None => std::future::pending().await,
        }
        self.reload = None;
    }

    /// Notifies the service manager of what is new: the start is complete, a reload began, or its effects are applied.
    pub(super) fn notify(
        &mut self,
        notifier: &Notifier,
        running: &Option<Running>,
        applied: &Option<Running>,
    ) {
        // A service that has not started cannot reload.
        let Some(applied) = applied else { return };
        let is_new_config = running.as_ref().is_some_and(|running| running.config != applied.config);
        if (self.reload.is_some() || is_new_config) && !self.is_reloading {
            self.is_reloading = true;
            log_failure(notifier.reloading());
        }
        let is_complete = self.is_reloading && self.reload.is_none() && running.as_ref() == Some(applied);
        let subnet = applied.lease.subnet;
        if is_complete || self.ready != Some(subnet) {
            self.is_reloading &= !is_complete;
            self.ready = Some(subnet);
            log_failure(notifier.ready(&format!("holding {}", subnets(&subnet))));
        }
    }
}
