//! The rules of the firewall: kept beside the network, and told of in the log.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use flannel_core::{NetworkConfig, Running, chain};
use flannel_firewall::{
    Firewall, FirewallError, FirewallMode, FirewallOptions, Kept, OverlayPrefixes, Pass, RuleOptions, open_port,
};
use flannel_netlink::Namespace;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::backends;
use crate::observe::report::{Beside, FirewallStatus};
use crate::options::FirewallFlags;

/// What the rules are made from.
pub(crate) struct Keeper {
    pub(crate) flags: FirewallFlags,
    pub(crate) namespace: Namespace,
    /// The networks of an earlier run.
    pub(crate) previous: Vec<OverlayPrefixes>,
    /// The network, once it carries traffic, and again when it has another subnet.
    pub(crate) network: watch::Receiver<Option<Running>>,
    /// The public addresses of all peers.
    pub(crate) peers: watch::Receiver<BTreeSet<IpAddr>>,
    /// Where it is noted what the firewall did.
    pub(crate) beside: Arc<Beside>,
    /// Who is told when the rules for a network were put, or could not be.
    pub(crate) done: mpsc::UnboundedSender<Running>,
}

impl Keeper {
    /// Keeps the rules for ever. A failure is told and tried again, and never ends the daemon.
    pub(crate) async fn keep(mut self) -> Infallible {
        let Some(mut running) = next(&mut self.network).await else {
            return std::future::pending().await;
        };
        let mut options = self.options(&running);
        let mut nets = OverlayPrefixes::of(&running.config, &running.lease.subnet);
        let mut firewall = Firewall::new(self.namespace.clone(), options, nets.clone(), &self.previous);
        let mut told = Told::default();
        self.open_other_ports(options.tunnel_port, None).await;
        loop {
            let before = std::mem::replace(&mut nets, OverlayPrefixes::of(&running.config, &running.lease.subnet));
            if options == self.options(&running) {
                firewall.set_nets(nets.clone());
            } else {
                // As a restart would: the first pass of another mode removes what is left of this one.
                let port = options.tunnel_port;
                options = self.options(&running);
                self.open_other_ports(options.tunnel_port, port).await;
                firewall = Firewall::new(self.namespace.clone(), options, nets.clone(), &before);
            }
            firewall.set_peers(self.peers.borrow_and_update().clone());
            self.look(&mut firewall, &mut told, options.mode).await;
            // Who waited for the rules may be gone: the daemon ends.
            let _ = self.done.send(running.clone());
            running = loop {
                tokio::select! {
                    biased;
                    Some(running) = next(&mut self.network) => break running,
                    Ok(()) = self.peers.changed() => firewall.set_peers(self.peers.borrow_and_update().clone()),
                    () = firewall.wait() => self.look(&mut firewall, &mut told, options.mode).await,
                }
            };
        }
    }

    /// Opens the ports that the tunnel had before, or that the backend beside it has: a table that guards one of them
    /// would not hear of new peers.
    async fn open_other_ports(&self, tunnel_port: Option<u16>, before: Option<u16>) {
        if !self.flags.restrict_tunnel_port {
            return;
        }
        let ports = ["vxlan", "udp"].into_iter().filter_map(backends::default_port).chain(before);
        let ports: BTreeSet<_> = ports.filter(|port| Some(*port) != tunnel_port).collect();
        for port in ports {
            if let Err(error) = open_port(&self.namespace, port).await {
                debug!("Port {port} may be closed still: {}", chain(&error));
            }
        }
    }

    async fn look(&self, firewall: &mut Firewall, told: &mut Told, mode: FirewallMode) {
        told.tell(&firewall.pass().await, mode);
        let counts = firewall.counts();
        self.beside.firewall(FirewallStatus {
            mode: if mode == FirewallMode::Nftables { "nftables" } else { "iptables" }.to_owned(),
            passes: counts.passes,
            repairs: counts.repairs,
            failures: counts.failures,
            failed: told.failures.clone(),
            obstacles: told.obstacles.clone(),
        });
    }

    fn options(&self, running: &Running) -> FirewallOptions {
        let config = &running.config;
        let mode = mode(config);
        let (tunnel_port, restrict_tunnel_port) =
            (backends::tunnel_port(config), self.flags.restrict_tunnel_port);
        if restrict_tunnel_port && tunnel_port.is_none() {
            warn!("-restrict-tunnel-port has no effect: backend {} has no port", config.backend.name);
        }
        FirewallOptions::new(mode, self.flags.rules, self.flags.resync)
            .with_tunnel_port(tunnel_port)
            .with_restrict_tunnel_port(restrict_tunnel_port)
    }
}

/// Removes the rules for a network that ends.
pub(crate) async fn remove(flags: &FirewallFlags, namespace: Namespace, running: &Running) {
    let before = OverlayPrefixes::of(&running.config, &running.lease.subnet);
    let nothing = FirewallOptions::new(mode(&running.config), RuleOptions::default(), flags.resync)
        .with_tunnel_port(backends::tunnel_port(&running.config));
    let pass = Firewall::new(namespace, nothing, Vec::new(), &before).pass().await;
    for failure in &pass.failures {
        warn!("Firewall rules stay: {}", chain(failure));
    }
}

pub(crate) fn mode(config: &NetworkConfig) -> FirewallMode {
    if config.enable_nftables { FirewallMode::Nftables } else { FirewallMode::Iptables }
}

/// Waits for a network that carries traffic; `None` if there will be none.
async fn next(network: &mut watch::Receiver<Option<Running>>) -> Option<Running> {
    network.changed().await.ok()?;
    network.borrow_and_update().clone()
}

/// What was told last; the same is not told twice in a row.
#[derive(Default)]
struct Told {
    failures: Vec<String>,
    obstacles: Vec<String>,
}

impl Told {
    fn tell(&mut self, pass: &Pass, mode: FirewallMode) {
        match (pass.rules, mode) {
            (Kept::InOrder, _) => {}
            (Kept::Put, _) => info!("The firewall rules are in place"),
            (Kept::Repaired, FirewallMode::Iptables) => {
                info!("Some iptables rules are missing; deleting and recreating rules");
            }
            (Kept::Repaired, FirewallMode::Nftables) => {
                info!("Some nftables rules were changed; writing them again");
            }
            (Kept::Repaired, _) => info!("Some firewall rules were changed; writing them again"),
        }
        match pass.tunnel {
            Kept::InOrder => {}
            Kept::Put => debug!("The port of the tunnel is for the peers there are now"),
            Kept::Repaired => info!("The table for the port of the tunnel was changed; writing it again"),
        }
        let failures: Vec<String> = pass.failures.iter().map(describe).collect();
        for line in failures.iter().filter(|line| !self.failures.contains(line)) {
            error!("{line}; it is tried again");
        }
        if failures.is_empty() && !self.failures.is_empty() {
            info!("The firewall rules are in order again");
        }
        self.failures = failures;
        if let Some(obstacles) = &pass.obstacles {
            for line in obstacles.iter().filter(|line| !self.obstacles.contains(line)) {
                warn!("Pods may not reach each other: {line}");
            }
            self.obstacles.clone_from(obstacles);
        }
    }
}

/// Says what failed, with upstream's words where it has some.
fn describe(error: &FirewallError) -> String {
    let words = if !error.is_not_installed() {
        "Failed to setup firewall rules"
    } else if let FirewallError::Iptables(..) = error {
        "Failed to setup IPTables. iptables binary was not found"
    } else {
        "Failed to setup nftables. nft binary was not found"
    };
    format!("{words}: {}", chain(error))
}
