//! The firewall rules and blackhole routes of the running network.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_core::{Running, chain};
use flannel_firewall::{
    BlackholeRoutes, Firewall, FirewallNetwork, FirewallOptions, FirewallStatus, OverlayPrefixes,
};
use flannel_netlink::Namespace;
use tokio::sync::{mpsc, watch};
use tracing::error;

use crate::options::FirewallFlags;
use flannel_node::backends;
use flannel_node::status::DaemonState;

/// Keeps the rules of the running network.
pub(crate) struct FirewallTask {
    pub(crate) flags: FirewallFlags,
    pub(crate) namespace: Namespace,
    /// The prefixes of an earlier run.
    pub(crate) previous: Vec<OverlayPrefixes>,
    /// The network, once it carries traffic, and again when it changes.
    pub(crate) running: watch::Receiver<Option<Running>>,
    /// The public addresses of all peers.
    pub(crate) peers: watch::Receiver<BTreeSet<IpAddr>>,
    pub(crate) beside: Arc<DaemonState>,
    /// Receives each network once the first pass for it is done, whether or not it succeeded.
    pub(crate) done: mpsc::UnboundedSender<Running>,
}

impl FirewallTask {
    pub(crate) async fn run(mut self) -> Infallible {
        let firewall = Firewall::new(self.namespace.clone(), options(&self.flags));
        let firewall = firewall.with_previous(&self.previous);
        let (publish, networks) = watch::channel(None);
        let (current, mut reported) = (self.running.clone(), None);
        let on_pass = |network: &FirewallNetwork, status: &FirewallStatus| {
            self.beside.firewall(status.clone());
            let running = current.borrow().clone().filter(|running| firewall_network(running) == *network);
            if let Some(running) = running.filter(|running| reported.as_ref() != Some(running)) {
                // The receiver is gone once the daemon ends.
                let _ = self.done.send(running.clone());
                reported = Some(running);
            }
        };
        let rules = firewall.run(networks.clone(), self.peers, on_pass);
        let routes = async {
            if self.flags.blackhole_route {
                BlackholeRoutes::new(self.namespace, self.flags.resync).run(networks).await
            } else {
                std::future::pending().await
            }
        };
        tokio::pin!(rules, routes);
        loop {
            tokio::select! {
                Ok(()) = self.running.changed() => {
                    publish.send_replace(self.running.borrow_and_update().as_ref().map(firewall_network));
                }
                never = &mut rules => match never {},
                never = &mut routes => match never {},
            }
        }
    }
}

fn options(flags: &FirewallFlags) -> FirewallOptions {
    FirewallOptions::new(flags.rules)
        .with_audit_interval(flags.resync)
        .with_restrict_tunnel_ports(flags.restrict_tunnel_port)
        .with_former_tunnel_ports(["vxlan", "udp"].into_iter().filter_map(backends::default_port))
}

fn firewall_network(running: &Running) -> FirewallNetwork {
    FirewallNetwork::new(&running.config, &running.lease.subnet, backends::tunnel_port(&running.config))
}

/// Removes the rules and routes of a network that ends.
pub(crate) async fn remove(flags: &FirewallFlags, namespace: Namespace, running: &Running) {
    let network = firewall_network(running);
    Firewall::remove(namespace.clone(), &network).await;
    if flags.blackhole_route
        && let Err(error) = BlackholeRoutes::remove(&namespace, &network)
    {
        error!("The blackhole route stays: {}", chain(&error));
    }
}
