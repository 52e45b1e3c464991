//! The upkeep of the rules over time: reconcile, wait for a reason, reconcile again.
//!
//! Reasons for a pass: the desired state changed; the kernel announced a change to a chain or table that matters; an audit
//! found a change that no notification announced; a failure is due for a retry. The kernel announces no changes to rules of
//! the legacy iptables, so only the audit finds those.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::IpAddr;

use flannel_core::chain;
use flannel_netlink::{IpFamily, Namespace, NftFamily, NftMonitor, NftNotification, NftTable, Nftables};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::iptables::{self, DesiredRules, Iptables, IptablesError};
use crate::nftables::{self, NftablesError, OwnTable};
use crate::options::{FirewallMode, FirewallNetwork, FirewallOptions};
use crate::report::{FirewallError, FirewallReport, FirewallStatus, RuleChange};
use crate::rules::{OverlayPrefixes, RuleOptions};
use crate::schedule::Schedule;
use crate::{nft_obstacles, tunnel_port};

/// The firewall rules of one network on one host.
///
/// [`run`](Self::run) keeps them for as long as it is polled. An agent that does other work between the passes calls
/// [`reconcile`](Self::reconcile) and [`wait`](Self::wait) itself:
///
/// ```no_run
/// # async fn keep(mut firewall: flannel_firewall::Firewall) {
/// loop {
///     let report = firewall.reconcile().await;
///     println!("{:?}, {} failures", report.rules, report.failures.len());
///     firewall.wait().await;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Firewall {
    namespace: Namespace,
    options: FirewallOptions,
    network: Option<FirewallNetwork>,
    /// The prefixes that this host has and those that it had. Rules about these are flannel's.
    owned: Vec<OverlayPrefixes>,
    peers: BTreeSet<IpAddr>,
    iptables: [Iptables; 2],
    tables: [OwnTable; 2],
    /// The tables of the tunnel ports.
    tunnels: BTreeMap<u16, OwnTable>,
    /// Ports that are no longer the network's, and whose tables may still be there.
    former_ports: BTreeSet<u16>,
    /// The obstacles that the last pass found in iptables.
    obstacles: Vec<String>,
    kernel: Option<Nftables>,
    monitor: Option<NftMonitor>,
    pending: Pending,
    schedule: Schedule,
    status: FirewallStatus,
}

/// What the next pass has to look at.
#[derive(Debug, Default)]
struct Pending {
    /// The desired rules changed, so that a write is no repair.
    is_new: bool,
    /// The peers or the ports changed, so that a write is no repair.
    peers_are_new: bool,
    /// Earlier runs, earlier versions and the other mode may have left rules.
    leftovers: bool,
    rules: bool,
    tunnels: bool,
    obstacles: bool,
    /// The ruleset at the last pass that found everything in order.
    verified: Fingerprint,
}

/// What can be seen of the host's ruleset without running a program.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Fingerprint {
    /// The generation of the kernel's nftables ruleset.
    generation: Option<u32>,
    /// Hashes of the chains that hold flannel's rules; `None` if they cannot be read without a program.
    rules: Option<Vec<u64>>,
}

impl Firewall {
    /// Prepares a firewall without a network. The first pass happens once there is one.
    #[must_use]
    pub fn new(namespace: Namespace, options: FirewallOptions) -> Self {
        Self {
            namespace,
            former_ports: options.former_tunnel_ports.clone(),
            options,
            network: None,
            owned: Vec::new(),
            peers: BTreeSet::new(),
            iptables: IpFamily::BOTH.map(Iptables::new),
            tables: IpFamily::BOTH.map(|family| OwnTable::new(nftables::rules_table(family))),
            tunnels: BTreeMap::new(),
            obstacles: Vec::new(),
            kernel: None,
            monitor: None,
            pending: Pending::default(),
            schedule: Schedule::new(),
            status: FirewallStatus::default(),
        }
    }

    /// Names the prefixes of an earlier run on this host. The first pass removes the rules about those that are no longer
    /// in use.
    #[must_use]
    pub fn with_previous(mut self, previous: &[OverlayPrefixes]) -> Self {
        self.owned.extend(previous);
        self
    }

    /// Sets the network that the rules are for. The next pass removes the rules about the one before.
    pub fn set_network(&mut self, network: FirewallNetwork) {
        let before = self.network.replace(network.clone());
        if before.as_ref() == Some(&network) {
            return;
        }
        let before_or = |change: fn(&FirewallNetwork, &FirewallNetwork) -> bool| {
            before.as_ref().is_none_or(|before| change(before, &network))
        };
        if before_or(|before, now| (before.mode, &before.prefixes) != (now.mode, &now.prefixes)) {
            self.owned.extend(&network.prefixes);
            let pending = &mut self.pending;
            (pending.is_new, pending.leftovers) = (true, true);
            (pending.rules, pending.obstacles) = (true, true);
        }
        if before_or(|before, now| before.tunnel_ports != now.tunnel_ports) {
            self.set_tunnel_ports(&network.tunnel_ports);
        }
    }

    fn set_tunnel_ports(&mut self, ports: &BTreeSet<u16>) {
        if self.options.restrict_tunnel_ports {
            if ports.is_empty() {
                warn!("The tunnel port cannot be restricted: the backend has none");
            }
            self.former_ports.extend(self.tunnels.keys());
            self.former_ports.retain(|port| !ports.contains(port));
        }
        self.tunnels.retain(|port, _| ports.contains(port));
        for port in ports {
            self.tunnels.entry(*port).or_insert_with(|| OwnTable::new(tunnel_port::table(*port)));
        }
        (self.pending.peers_are_new, self.pending.tunnels, self.pending.leftovers) = (true, true, true);
    }

    /// Sets the public addresses of all peers: those that may send to a restricted tunnel port.
    pub fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        if peers != self.peers {
            self.peers = peers;
            (self.pending.peers_are_new, self.pending.tunnels) = (true, true);
        }
    }

    /// Returns the state of the rules and the counts of all passes.
    #[must_use]
    pub fn status(&self) -> &FirewallStatus {
        &self.status
    }

    /// Keeps the rules of the network that `networks` holds, and never returns.
    ///
    /// `peers` holds the public addresses of all peers; it matters only with
    /// [`restrict_tunnel_ports`](FirewallOptions::restrict_tunnel_ports). `on_pass` is called after each pass, with the
    /// network that the pass was for; thus it learns when the rules of a network are in place. Failures are logged and
    /// retried. While `networks` is `None`, the rules of the last network stay.
    ///
    /// ```
    /// use std::collections::BTreeSet;
    ///
    /// use flannel_firewall::{Firewall, FirewallNetwork, FirewallOptions, RuleOptions};
    /// use flannel_netlink::Namespace;
    /// use tokio::sync::watch;
    ///
    /// async fn keep_rules(networks: watch::Receiver<Option<FirewallNetwork>>) -> std::io::Result<()> {
    ///     let options = FirewallOptions::new(RuleOptions::default().with_masquerade(true));
    ///     let firewall = Firewall::new(Namespace::current()?, options);
    ///     let (_peers, peers) = watch::channel(BTreeSet::new());
    ///     let on_pass = |_: &FirewallNetwork, status: &flannel_firewall::FirewallStatus| {
    ///         println!("{} passes, {} failures", status.passes, status.failures);
    ///     };
    ///     match firewall.run(networks, peers, on_pass).await {}
    /// }
    /// ```
    pub async fn run(
        mut self,
        mut networks: watch::Receiver<Option<FirewallNetwork>>,
        mut peers: watch::Receiver<BTreeSet<IpAddr>>,
        mut on_pass: impl FnMut(&FirewallNetwork, &FirewallStatus),
    ) -> Infallible {
        loop {
            let network = networks.borrow_and_update().clone();
            self.set_peers(peers.borrow_and_update().clone());
            if let Some(network) = network {
                self.set_network(network);
                self.reconcile().await;
                self.notify(&mut on_pass);
            }
            loop {
                tokio::select! {
                    biased;
                    Ok(()) = networks.changed() => break,
                    Ok(()) = peers.changed() => self.set_peers(peers.borrow_and_update().clone()),
                    () = self.wait() => {
                        self.reconcile().await;
                        self.notify(&mut on_pass);
                    }
                }
            }
        }
    }

    fn notify(&self, on_pass: &mut impl FnMut(&FirewallNetwork, &FirewallStatus)) {
        if let Some(network) = &self.network {
            on_pass(network, &self.status);
        }
    }

    /// Removes the rules of a network in both modes, and the tables of its tunnel ports. Returns what failed.
    pub async fn remove(namespace: Namespace, network: &FirewallNetwork) -> Vec<FirewallError> {
        let mut firewall = Self::new(namespace, FirewallOptions::new(RuleOptions::default()))
            .with_previous(&network.prefixes);
        firewall.set_network(FirewallNetwork { prefixes: Vec::new(), ..network.clone() });
        let failures = firewall.reconcile().await.failures;
        for failure in &failures {
            warn!("Firewall rules stay: {}", chain(failure));
        }
        failures
    }

    /// Checks what there is reason to check, and makes it as desired. Without a network it does nothing.
    ///
    /// Changes, failures and obstacles are logged when they are new.
    pub async fn reconcile(&mut self) -> FirewallReport {
        let Some(mode) = self.network.as_ref().map(|network| network.mode) else {
            return FirewallReport::default();
        };
        self.open_sockets();
        let current = self.fingerprint(mode);
        self.compare(&current);
        let mut report = FirewallReport::default();
        if self.pending.rules {
            let changed = self.reconcile_rules(mode, &mut report.failures).await;
            report.rules = RuleChange::new(changed, self.pending.is_new);
        }
        if self.pending.tunnels {
            let changed = self.reconcile_tunnels(&mut report.failures).await;
            report.tunnel_ports = RuleChange::new(changed, self.pending.peers_are_new);
        }
        if self.pending.rules || self.pending.obstacles {
            self.find_obstacles(mode, &mut report);
        }
        self.finish(&report, current);
        self.status.update(&report, mode);
        report
    }

    /// Waits until there is a reason for another pass. Cancel safe.
    pub async fn wait(&mut self) {
        let Some(mode) = self.network.as_ref().map(|network| network.mode) else {
            return std::future::pending().await;
        };
        while !(self.pending.rules || self.pending.tunnels || self.pending.obstacles) {
            tokio::select! {
                notice = next_notice(&mut self.monitor) => self.mark_changed(notice),
                () = sleep_until(self.schedule.audit_at) => self.audit(mode),
            }
        }
        let is_new = self.pending.is_new || self.pending.peers_are_new;
        sleep_until(self.schedule.next_pass(is_new)).await;
    }

    fn audit(&mut self, mode: FirewallMode) {
        self.schedule.audit_at = Instant::now() + self.options.audit_interval;
        self.open_sockets();
        let current = self.fingerprint(mode);
        self.compare(&current);
    }

    /// Marks what differs from the last verified ruleset.
    fn compare(&mut self, current: &Fingerprint) {
        let verified = &self.pending.verified;
        self.pending.rules |= current.rules.is_none() || current.rules != verified.rules;
        let is_changed = current.generation.is_none() || current.generation != verified.generation;
        self.pending.tunnels |= is_changed && self.options.restrict_tunnel_ports;
        self.pending.obstacles |= is_changed && self.schedule.obstacles_at <= Instant::now();
    }

    /// Marks what a notification may concern. A lost or broken stream concerns everything.
    fn mark_changed(&mut self, notice: Option<NftNotification>) {
        match notice {
            Some(NftNotification::Changed { table, chain }) => {
                self.pending.rules |= self.holds_rules(&table, chain.as_deref());
                self.pending.tunnels |= self.tunnels.values().any(|own| *own.table() == table);
            }
            Some(NftNotification::Overrun | _) | None => {
                (self.pending.rules, self.pending.tunnels) = (true, true);
            }
        }
    }

    /// Returns whether flannel's rules may be in this table and chain.
    fn holds_rules(&self, table: &NftTable, chain: Option<&str>) -> bool {
        match self.network.as_ref().map(|network| network.mode) {
            None => false,
            Some(FirewallMode::Nftables) => self.tables.iter().any(|own| own.table() == table),
            Some(FirewallMode::Iptables) => {
                let is_watched = |(name, watched): &(&str, &str)| {
                    *name == table.name && chain.is_none_or(|chain| chain == *watched)
                };
                matches!(table.family, NftFamily::Ip | NftFamily::Ip6)
                    && iptables::WATCHED.iter().any(is_watched)
            }
        }
    }

    /// Opens the sockets that are missing, and drains notifications: the pass that follows covers them.
    fn open_sockets(&mut self) {
        if self.kernel.is_none() {
            self.kernel = Nftables::open_in(&self.namespace).ok();
        }
        if self.monitor.is_none() {
            self.monitor = NftMonitor::open_in(&self.namespace).ok();
        }
        while let Some(Ok(Some(notice))) = self.monitor.as_mut().map(NftMonitor::try_next) {
            self.mark_changed(Some(notice));
        }
    }

    fn fingerprint(&mut self, mode: FirewallMode) -> Fingerprint {
        let generation = self.kernel.as_mut().and_then(|kernel| kernel.generation().ok());
        if generation.is_none() {
            // The socket may be broken; the next pass opens a new one.
            self.kernel = None;
        }
        let rules = match mode {
            FirewallMode::Nftables => generation.map(|generation| vec![generation.into()]),
            FirewallMode::Iptables => {
                let used = self.iptables.iter().filter(|iptables| {
                    prefixes(self.network.as_ref()).iter().any(|nets| nets.family() == iptables.family())
                });
                let mut kernel = self.kernel.as_mut();
                let hashes = used.map(|iptables| {
                    iptables.fingerprint(&self.namespace, kernel.as_deref_mut(), &self.options.rules)
                });
                hashes.collect::<Option<Vec<_>>>().map(|hashes| hashes.concat())
            }
        };
        Fingerprint { generation, rules }
    }

    fn uses_legacy_iptables(&self) -> bool {
        self.iptables.iter().any(|iptables| iptables.variant().is_some_and(|variant| !variant.is_nft))
    }

    /// Makes the rules as desired, and removes those of the other mode. Returns whether anything had to be changed.
    async fn reconcile_rules(&mut self, mode: FirewallMode, failures: &mut Vec<FirewallError>) -> bool {
        let (mut changed, leftovers) = (false, self.pending.leftovers);
        match mode {
            FirewallMode::Iptables => {
                changed |= self.reconcile_iptables(failures, true).await;
                if leftovers {
                    changed |= self.reconcile_nftables(failures, false).await;
                }
            }
            FirewallMode::Nftables => {
                changed |= self.reconcile_nftables(failures, true).await;
                if leftovers {
                    changed |= self.reconcile_iptables(failures, false).await;
                }
            }
        }
        changed
    }

    fn find_obstacles(&mut self, mode: FirewallMode, report: &mut FirewallReport) {
        if !self.options.rules.forward {
            return;
        }
        let are_in_iptables = mode == FirewallMode::Iptables && !self.uses_legacy_iptables();
        let nets = prefixes(self.network.as_ref());
        let kernel = self.kernel.as_mut();
        let found = kernel.map(|kernel| nft_obstacles::find(kernel, nets, are_in_iptables));
        // A kernel without nftables has no such chains.
        let found = found.and_then(Result::ok).unwrap_or_default();
        report.obstacles = Some(self.obstacles.iter().cloned().chain(found).collect());
    }

    /// Makes the rules in iptables as desired; without `desired`, removes them.
    async fn reconcile_iptables(&mut self, failures: &mut Vec<FirewallError>, desired: bool) -> bool {
        let mut changed = false;
        self.obstacles.clear();
        for iptables in &mut self.iptables {
            let family = iptables.family();
            let is_of_family = |nets: &&OverlayPrefixes| nets.family() == family;
            let owned: Vec<_> = self.owned.iter().filter(is_of_family).copied().collect();
            let nets = prefixes(self.network.as_ref()).iter().find(is_of_family).copied();
            let nets = nets.filter(|_| desired);
            let rules = self.options.rules;
            let is_needed = nets.is_some() && (rules.masquerade || rules.forward);
            // A host without iptables has no rules in it.
            let may_have_left = self.pending.leftovers && iptables.is_installed();
            if owned.is_empty() || !(is_needed || may_have_left) {
                continue;
            }
            let desired =
                DesiredRules { nets, owned: &owned, options: rules, leftovers: self.pending.leftovers };
            match iptables.reconcile(&self.namespace, &desired).await {
                Ok(report) => {
                    changed |= report.changes > 0;
                    self.obstacles.extend(report.obstacles);
                }
                Err(error @ IptablesError::NotShown { .. }) if !is_needed => {
                    debug!(%error, "cannot look for leftovers in iptables");
                }
                Err(error) => failures.push(FirewallError::Iptables(family, error)),
            }
        }
        changed
    }

    /// Makes the rules in nftables as desired; without `desired`, removes them.
    async fn reconcile_nftables(&mut self, failures: &mut Vec<FirewallError>, desired: bool) -> bool {
        let mut changed = false;
        for (family, own) in IpFamily::BOTH.into_iter().zip(&mut self.tables) {
            let mut nets = prefixes(self.network.as_ref()).iter();
            let nets = nets.find(|nets| desired && nets.family() == family);
            let script = nets.and_then(|nets| nftables::rules_script(nets, &self.options.rules));
            let script = script.as_deref();
            changed |= reconcile_table(&self.namespace, self.kernel.as_mut(), own, script, failures).await;
        }
        changed
    }

    /// Makes the tables of the tunnel ports as desired. Returns whether anything had to be changed.
    async fn reconcile_tunnels(&mut self, failures: &mut Vec<FirewallError>) -> bool {
        let mut changed = false;
        let is_restricted = self.options.restrict_tunnel_ports;
        if is_restricted {
            for port in std::mem::take(&mut self.former_ports) {
                let (failures_before, kernel) = (failures.len(), self.kernel.as_mut());
                let mut own = OwnTable::new(tunnel_port::table(port));
                changed |= reconcile_table(&self.namespace, kernel, &mut own, None, failures).await;
                if failures.len() > failures_before {
                    self.former_ports.insert(port);
                }
            }
        }
        if !is_restricted && !self.pending.leftovers {
            return changed;
        }
        for (port, own) in &mut self.tunnels {
            let script = is_restricted.then(|| tunnel_port::script(*port, &self.peers));
            let script = script.as_deref();
            changed |= reconcile_table(&self.namespace, self.kernel.as_mut(), own, script, failures).await;
        }
        changed
    }

    /// Decides what the next pass has to look at.
    fn finish(&mut self, report: &FirewallReport, current: Fingerprint) {
        self.schedule.record(report, self.options.audit_interval);
        if !report.failures.is_empty() {
            (self.pending.rules, self.pending.tunnels) = (true, true);
            self.pending.verified = Fingerprint::default();
            return;
        }
        if self.pending.leftovers {
            // The rules of earlier networks are gone.
            self.owned = prefixes(self.network.as_ref()).to_vec();
        }
        // After a change, the next pass verifies it.
        let is_changed = [report.rules, report.tunnel_ports] != [RuleChange::Unchanged; 2];
        let verified = if is_changed { Fingerprint::default() } else { current };
        self.pending = Pending { verified, ..Pending::default() };
    }
}

fn prefixes(network: Option<&FirewallNetwork>) -> &[OverlayPrefixes] {
    network.map_or(&[], |network| &network.prefixes)
}

/// Waits for the next notification. A broken socket is closed; without one there are no notifications.
async fn next_notice(monitor: &mut Option<NftMonitor>) -> Option<NftNotification> {
    let Some(open) = monitor else {
        return std::future::pending().await;
    };
    let notice = open.next().await.ok();
    if notice.is_none() {
        *monitor = None;
    }
    notice
}

/// Makes one table as desired. Returns whether it had to be changed.
async fn reconcile_table(
    namespace: &Namespace,
    kernel: Option<&mut Nftables>,
    own: &mut OwnTable,
    script: Option<&str>,
    failures: &mut Vec<FirewallError>,
) -> bool {
    let result = match kernel {
        Some(kernel) => own.reconcile(namespace, kernel, script).await,
        None => Err(NftablesError::Unavailable),
    };
    match result {
        Ok(changed) => changed,
        // A kernel without nftables has no table to remove.
        Err(NftablesError::Kernel(_) | NftablesError::Unavailable) if script.is_none() => false,
        Err(error) => {
            failures.push(FirewallError::Nftables(own.table().clone(), error));
            false
        }
    }
}
