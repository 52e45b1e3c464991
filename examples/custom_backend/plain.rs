//! The backend: plain routes between hosts on one link.
//!
//! A `Reconciler` compares the desired routes with those in a `Table`, so every pass converges, also after a restart, a
//! failed write, or an external change.

use std::net::IpAddr;
use std::time::Instant;

use async_trait::async_trait;
use flannel_core::reconcile::{Reconciler, pass};
use flannel_core::{
    Backend, BackendAttrs, BackendError, BackendType, Dirty, ExternalInterface, Lease, SyncReport,
    SyncRequest,
};
use flannel_netlink::{Monitor, Notification, Route};
use ipnet::IpNet;

use crate::routes::{OURS, Routes};

/// The backend of one host.
pub(crate) struct Plain {
    pub(crate) routes: Reconciler<Routes>,
    pub(crate) monitor: Monitor,
    pub(crate) mtu: u32,
}

#[async_trait]
impl Backend for Plain {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new(BackendType::from("plain".to_owned()))
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.mtu = external.mtu;
        Ok(())
    }

    fn configure(&mut self, _own: &Lease) -> Result<(), BackendError> {
        Ok(())
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        if *request.dirty == Dirty::All {
            self.routes.tracker.mark_stale();
        }
        let routes = request
            .peers
            .iter()
            .flat_map(|peer| peer.subnet.v4().map(IpNet::V4).zip(peer.attrs.public.v4.map(IpAddr::V4)));
        self.routes.tracker.set_all_desired(routes.collect());
        pass(&mut [("the routes", &mut self.routes)], request.peers.is_complete(), request.now)
    }

    async fn wait_for_drift(&mut self) -> String {
        loop {
            match self.monitor.next().await {
                Ok(
                    Notification::Route { route: Route { protocol: OURS, .. }, .. } | Notification::Overrun,
                ) => break,
                Ok(_) => {}
                // The audits still detect drift.
                Err(_) => std::future::pending().await,
            }
        }
        self.routes.tracker.mark_stale();
        "a route changed externally".to_owned()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.routes.tracker.set_all_desired(Vec::new());
        pass(&mut [("the routes", &mut self.routes)], true, Instant::now());
        Ok(())
    }
}
