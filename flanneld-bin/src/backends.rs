//! Which backend a configuration asks for.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use flannel_backend_extension::{OpenAlloc, OpenExtension};
use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::{OpenHostGw, OpenVxlan};
use flannel_core::{
    Backend, BackendAttrs, BackendError, CountTraffic, DeviceFacts, Dirty, ExternalInterface, Lease,
    NetworkConfig, OpenBackend, OpenRequest, Plan, PlanRequest, SyncReport, SyncRequest,
};
use flannel_netlink::Namespace;
use tokio::sync::watch;

use crate::fd_store::FdStore;

mod carriers;

use carriers::Carriers;

/// The backends that this daemon has.
#[derive(Clone, Debug)]
pub(crate) struct Backends {
    namespace: Namespace,
    peers: Option<watch::Sender<BTreeSet<IpAddr>>>,
    store: Option<Arc<FdStore>>,
}

impl Backends {
    /// Takes the namespace in which the backends work, and whom to tell of the public addresses of all peers, if anybody
    /// wants to know: that costs a look at all peers whenever one changes.
    pub(crate) fn new(namespace: Namespace, peers: Option<watch::Sender<BTreeSet<IpAddr>>>) -> Self {
        Self { namespace, peers, store: None }
    }

    /// Keeps what a restart shall not cost in a store.
    pub(crate) fn with_store(self, store: Option<FdStore>) -> Self {
        Self { store: store.map(Arc::new), ..self }
    }

    /// Opens the one that a configuration names.
    fn one(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        match request.config.backend.name.to_lowercase().as_str() {
            "vxlan" => OpenVxlan::new(self.namespace.clone()).open(request),
            "host-gw" => OpenHostGw::new(self.namespace.clone()).open(request),
            "udp" => self.udp().open(request),
            "extension" => OpenExtension::new(self.namespace.clone()).open(request),
            "alloc" => OpenAlloc.open(request),
            name => Err(unknown(name)),
        }
    }

    fn udp(&self) -> OpenUdp {
        let open = OpenUdp::new(self.namespace.clone()).with_vxlan_peers();
        match self.store.clone() {
            Some(store) => open.with_store(store),
            None => open,
        }
    }
}

impl OpenBackend for Backends {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let backend: Box<dyn Backend> = Box::new(Carriers::open(self.clone(), request)?);
        if let Some(store) =
            self.store.as_ref().filter(|_| !request.config.backend.name.eq_ignore_ascii_case("udp"))
        {
            // What another backend left.
            store.give_up();
        }
        Ok(match self.peers.clone() {
            Some(peers) => Box::new(Told { backend, peers }),
            None => backend,
        })
    }

    fn plan(&self, request: PlanRequest<'_>) -> Result<Plan, BackendError> {
        match request.config.backend.name.to_lowercase().as_str() {
            "vxlan" => OpenVxlan::new(self.namespace.clone()).plan(request),
            "host-gw" => OpenHostGw::new(self.namespace.clone()).plan(request),
            "udp" => Err(BackendError::Host(
                "there is nothing to plan for the backend udp: its device ends with its daemon, and a start makes \
                 everything anew"
                    .to_owned(),
            )),
            "extension" => OpenExtension::new(self.namespace.clone()).plan(request),
            "alloc" => OpenAlloc.plan(request),
            name => Err(unknown(name)),
        }
    }
}

/// Says that there is no such backend.
pub(crate) fn unknown(name: &str) -> BackendError {
    BackendError::UnknownType(format!("{name} (this daemon has: vxlan, host-gw, udp, extension, alloc)"))
}

/// The UDP port on which the backend of a configuration hears its peers; none if it has no such port.
pub(crate) fn tunnel_port(config: &NetworkConfig) -> Option<u16> {
    let default = default_port(&config.backend.name.to_lowercase())?;
    // What is wrong with it, the backend says.
    let given = config.backend.options.object().ok().and_then(|options| options.unsigned("Port").ok()?);
    given.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0).or(Some(default))
}

/// The UDP port of a backend whose configuration names none.
pub(crate) fn default_port(backend: &str) -> Option<u16> {
    match backend {
        "vxlan" => Some(8472),
        "udp" => Some(8285),
        _ => None,
    }
}

/// A backend whose peers somebody else wants to know, too.
struct Told {
    backend: Box<dyn Backend>,
    peers: watch::Sender<BTreeSet<IpAddr>>,
}

#[async_trait]
impl Backend for Told {
    fn attrs(&self) -> BackendAttrs {
        self.backend.attrs()
    }

    fn mtu(&self) -> u32 {
        self.backend.mtu()
    }

    fn move_to(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.backend.move_to(external)
    }

    fn reconfigure(&mut self, request: OpenRequest<'_>) -> Result<(), BackendError> {
        self.backend.reconfigure(request)
    }

    fn configure(&mut self, own: &Lease) -> Result<(), BackendError> {
        self.backend.configure(own)
    }

    fn sync(&mut self, request: SyncRequest<'_>) -> SyncReport {
        if *request.dirty != Dirty::NONE {
            let publics = request.peers.iter().map(|peer| peer.attrs.public);
            let peers = publics
                .flat_map(|public| public.v4.map(IpAddr::V4).into_iter().chain(public.v6.map(IpAddr::V6)));
            let peers = peers.collect();
            self.peers.send_if_modified(|told| {
                let is_news = *told != peers;
                *told = peers;
                is_news
            });
        }
        self.backend.sync(request)
    }

    async fn drifted(&mut self) -> String {
        self.backend.drifted().await
    }

    fn devices(&self) -> Vec<DeviceFacts> {
        self.backend.devices()
    }

    fn traffic(&self) -> Option<Arc<dyn CountTraffic>> {
        self.backend.traffic()
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.backend.remove()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_the_tunnel_is_the_configured_one_or_the_backends() {
        let port = |backend: &str| {
            let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
            tunnel_port(&NetworkConfig::parse(&text).expect("valid"))
        };
        assert_eq!(port(r#"{"Type":"vxlan"}"#), Some(8472));
        assert_eq!(port(r#"{"Type":"VXLAN","port":4789}"#), Some(4789));
        assert_eq!(port(r#"{"Type":"vxlan","Port":0}"#), Some(8472));
        assert_eq!(port(r#"{"Type":"udp"}"#), Some(8285));
        assert_eq!(port(r#"{"Type":"host-gw"}"#), None);
    }
}
