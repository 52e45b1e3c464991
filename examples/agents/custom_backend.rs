//! A node agent with a backend of its own: plain routes between hosts on one link, opened by its name.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

use std::error::Error;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use async_trait::async_trait;
use flannel_core::reconcile::{Change, Reconciler, Table, pass};
use flannel_core::{
    Backend, BackendAttrs, BackendDescriptor, BackendError, BackendType, BoxError, Dirty, ExternalInterface,
    Lease, NetworkOptions, OpenBackend, OpenRequest, SyncReport, SyncRequest,
};
use flannel_dataplane::external_interface;
use flannel_examples::agent::{AgentThread, agent_options, start_agents};
use flannel_examples::show_ping;
use flannel_netlink::{Monitor, Namespace, Netlink, Notification, Route, RouteFilter, WriteRequest};
use flannel_node::{BackendRegistry, NodeAgent};
use flannel_registry::{MemoryRegistry, RegistryLeaseManager};
use flannel_testing::{INTERFACE, Lab, LabOptions};
use ipnet::IpNet;

/// The protocol number that marks the routes of this backend.
const OURS: u8 = 99;

/// The routes to peers; the value is the next hop.
struct Routes(Netlink);

impl Table for Routes {
    type Key = IpNet;
    type Value = IpAddr;
    fn name(subnet: &IpNet, _: &IpAddr) -> String {
        format!("route {subnet}")
    }
    fn read(&mut self) -> Result<Vec<(IpNet, IpAddr)>, BoxError> {
        let ours = RouteFilter { protocol: Some(OURS), ..RouteFilter::default() };
        Ok(self
            .0
            .routes(&ours)?
            .iter()
            .filter_map(|route| Some((route.destination, route.gateway?)))
            .collect())
    }
    fn apply(&mut self, changes: &[Change<IpNet, IpAddr>]) -> Vec<Result<(), BoxError>> {
        let route =
            |subnet: &IpNet, host: &IpAddr| Route { protocol: OURS, ..Route::by_gateway(*subnet, *host) };
        let writes = changes.iter().map(|change| match change {
            Change::Put { key, value, .. } => WriteRequest::PutRoute(route(key, value)),
            Change::Drop { key, value } => WriteRequest::DeleteRoute(route(key, value)),
        });
        self.0
            .apply(&writes.collect::<Vec<_>>())
            .into_iter()
            .map(|result| result.map_err(BoxError::from))
            .collect()
    }
}

struct Plain {
    routes: Reconciler<Routes>,
    monitor: Monitor,
    mtu: u32,
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
    fn configure(&mut self, _: &Lease) -> Result<(), BackendError> {
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

struct OpenPlain(Namespace);

impl OpenBackend for OpenPlain {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        let failed = |error: &dyn Error| BackendError::Host(format!("cannot open a netlink socket: {error}"));
        let mut monitor = Monitor::open_in(&self.0).map_err(|error| failed(&error))?;
        let netlink = Netlink::open_in(&self.0).map_err(|error| failed(&error))?;
        monitor.ignore_changes_of(&[netlink.port_id()]).map_err(|error| failed(&error))?;
        Ok(Box::new(Plain { routes: Reconciler::new(Routes(netlink)), monitor, mtu: request.external.mtu }))
    }
}

impl BackendDescriptor for OpenPlain {
    fn name(&self) -> &'static str {
        "plain"
    }
}

/// Builds the agent of the host whose namespace the thread is in.
fn agent(registry: MemoryRegistry, files: &Path) -> Result<NodeAgent, Box<dyn Error>> {
    let namespace = Namespace::current()?;
    let backends = BackendRegistry::new().with(OpenPlain(namespace.clone()));
    let external = external_interface(&namespace, INTERFACE)?;
    let network = NetworkOptions::new(RegistryLeaseManager::new(registry), backends.clone(), external);
    Ok(NodeAgent::new(namespace, network, backends, agent_options(files)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (lab, registry) = (Lab::new(&LabOptions::default())?, MemoryRegistry::new());
    registry.set_config(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "plain"}}"#);
    let (agents, pods) = start_agents(&lab, move |files| agent(registry.clone(), files))?;
    show_ping(&pods[0], &pods[1]).await?;
    println!("flannel_firewall_in_order {}", agents[0].metric("flannel_firewall_in_order")?);
    agents.into_iter().try_for_each(AgentThread::stop)?;
    println!("everything removed");
    Ok(())
}
