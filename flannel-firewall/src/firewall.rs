//! Keeping the rules: look, put right, wait for a reason to look again.
//!
//! Reasons are: what is wanted changed; the kernel told of a change of a chain or table that matters; the audit found that
//! something changed, though no notice said so; a failure is to be tried again. Rules of a legacy iptables are not in
//! nftables, so the kernel tells nothing of them, and it is the audit that finds changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use flannel_netlink::{IpFamily, Namespace, NftFamily, NftMonitor, NftNotification, NftTable, Nftables};
use tokio::time::{Instant, sleep_until};

use crate::iptables::{self, Desired, Iptables, IptablesError};
use crate::nftables::{self, NftablesError, OwnTable};
use crate::options::{FirewallMode, FirewallOptions};
use crate::outcome::{FirewallCounts, FirewallError, Kept, Pass};
use crate::pace::Pace;
use crate::rules::OverlayPrefixes;
use crate::{obstacles, tunnel_port};

/// The rules of one network on one host.
///
/// ```no_run
/// # async fn keep(mut firewall: flannel_firewall::Firewall) {
/// loop {
///     for failure in firewall.pass().await.failures {
///         eprintln!("{failure}");
///     }
///     firewall.wait().await;
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Firewall {
    namespace: Namespace,
    options: FirewallOptions,
    nets: Vec<OverlayPrefixes>,
    /// The networks that this host has and those that it had: rules about these are ours.
    ours: Vec<OverlayPrefixes>,
    peers: BTreeSet<IpAddr>,
    iptables: [Iptables; 2],
    tables: [OwnTable; 2],
    tunnel: Option<(u16, OwnTable)>,
    /// What stood in the way in iptables at the last look.
    obstacles: Vec<String>,
    kernel: Option<Nftables>,
    monitor: Option<NftMonitor>,
    doubt: Doubt,
    pace: Pace,
    counts: FirewallCounts,
}

/// Why to look.
#[derive(Debug)]
struct Doubt {
    /// Something is wanted that was not before: to change rules then is no repair.
    is_new: bool,
    /// The same for who may use the port of the tunnel.
    peers_are_new: bool,
    /// Earlier runs, earlier versions and the other mode may have left something.
    leftovers: bool,
    rules: bool,
    tunnel: bool,
    /// Whether something new stands in the way.
    obstacles: bool,
    /// What there was at the last look that found everything in order.
    looked_at: Seen,
}

/// What can be seen of the host's rules without a program.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Seen {
    /// The number of the last change in nftables.
    generation: Option<u32>,
    /// Numbers that are others if somebody changed the chains that concern us; none if that cannot be seen.
    rules: Option<Vec<u64>>,
}

impl Firewall {
    /// Takes what is wanted. `nets` are the networks of the host, `before` those that an earlier run on this host had.
    ///
    /// Nothing happens before the first [`pass`](Self::pass).
    #[must_use]
    pub fn new(namespace: Namespace, options: FirewallOptions, nets: Vec<OverlayPrefixes>, before: &[OverlayPrefixes]) -> Self {
        let mut firewall = Self {
            namespace,
            options,
            nets: Vec::new(),
            ours: before.to_vec(),
            peers: BTreeSet::new(),
            iptables: IpFamily::BOTH.map(Iptables::new),
            tables: IpFamily::BOTH.map(|family| OwnTable::new(nftables::rules_table(family))),
            tunnel: options.tunnel_port.map(|port| (port, OwnTable::new(tunnel_port::table(port)))),
            obstacles: Vec::new(),
            kernel: None,
            monitor: None,
            doubt: Doubt {
                is_new: true,
                peers_are_new: true,
                leftovers: true,
                rules: true,
                tunnel: true,
                obstacles: true,
                looked_at: Seen::default(),
            },
            pace: Pace::new(),
            counts: FirewallCounts::default(),
        };
        firewall.set_nets(nets);
        firewall
    }

    /// Changes the networks of the host; rules about the earlier ones go with the next pass.
    pub fn set_nets(&mut self, nets: Vec<OverlayPrefixes>) {
        if nets == self.nets {
            return;
        }
        self.ours.extend(&nets);
        self.nets = nets;
        (self.doubt.is_new, self.doubt.leftovers, self.doubt.rules) = (true, true, true);
    }

    /// Changes who may use the port of the tunnel: the public addresses of all peers.
    pub fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        if peers != self.peers {
            self.peers = peers;
            (self.doubt.peers_are_new, self.doubt.tunnel) = (true, true);
        }
    }

    /// Looks at what there is reason to look at, and makes it as it should be.
    pub async fn pass(&mut self) -> Pass {
        self.listen();
        let seen = self.see();
        self.doubt_what_differs(&seen);
        let mut pass = Pass::default();
        if self.doubt.rules {
            let changed = self.keep_rules(&mut pass.failures).await;
            pass.rules = Kept::new(changed, self.doubt.is_new);
        }
        if self.doubt.tunnel {
            let changed = self.keep_tunnel(&mut pass.failures).await;
            pass.tunnel = Kept::new(changed, self.doubt.peers_are_new);
        }
        if self.doubt.rules || self.doubt.obstacles {
            self.look_for_obstacles(&mut pass);
        }
        self.settle(&pass, seen);
        pass
    }

    /// Waits until there is a reason for another pass. May be dropped at any time.
    pub async fn wait(&mut self) {
        while !(self.doubt.rules || self.doubt.tunnel || self.doubt.obstacles) {
            tokio::select! {
                notice = next_notice(&mut self.monitor) => self.hear(notice),
                () = sleep_until(self.pace.audit_at) => self.audit(),
            }
        }
        let is_new = self.doubt.is_new || self.doubt.peers_are_new;
        sleep_until(self.pace.next_pass(is_new)).await;
    }

    /// Looks whether there is anything to look at.
    fn audit(&mut self) {
        self.pace.audit_at = Instant::now() + self.options.audit_every;
        self.listen();
        let seen = self.see();
        self.doubt_what_differs(&seen);
    }

    fn doubt_what_differs(&mut self, seen: &Seen) {
        let before = &self.doubt.looked_at;
        self.doubt.rules |= seen.rules.is_none() || seen.rules != before.rules;
        let is_changed = seen.generation.is_none() || seen.generation != before.generation;
        self.doubt.tunnel |= is_changed && self.options.restrict_tunnel_port;
        self.doubt.obstacles |= is_changed && self.pace.obstacles_at <= Instant::now();
    }

    fn hear(&mut self, notice: Option<NftNotification>) {
        match notice {
            Some(NftNotification::Changed { table, chain }) => {
                self.doubt.rules |= self.is_about_rules(&table, chain.as_deref());
                self.doubt.tunnel |= self.tunnel.as_ref().is_some_and(|(_, own)| *own.table() == table);
            }
            Some(NftNotification::Overrun | _) | None => (self.doubt.rules, self.doubt.tunnel) = (true, true),
        }
    }

    fn is_about_rules(&self, table: &NftTable, chain: Option<&str>) -> bool {
        match self.options.mode {
            FirewallMode::Nftables => self.tables.iter().any(|own| own.table() == table),
            FirewallMode::Iptables => {
                let is_here = |(name, watched): &(&str, &str)| {
                    *name == table.name && chain.is_none_or(|chain| chain == *watched)
                };
                matches!(table.family, NftFamily::Ip | NftFamily::Ip6)
                    && iptables::WATCHED.iter().any(is_here)
            }
        }
    }

    /// Opens what the kernel is heard and asked by, and forgets the notices of what is looked at now.
    fn listen(&mut self) {
        if self.kernel.is_none() {
            self.kernel = Nftables::open_in(&self.namespace).ok();
        }
        if self.monitor.is_none() {
            self.monitor = NftMonitor::open_in(&self.namespace).ok();
        }
        while let Some(Ok(Some(notice))) = self.monitor.as_mut().map(NftMonitor::try_next) {
            self.hear(Some(notice));
        }
    }

    /// Looks at what can be seen without a program.
    fn see(&mut self) -> Seen {
        let generation = self.kernel.as_mut().and_then(|kernel| kernel.generation().ok());
        if generation.is_none() {
            // The socket may be broken; the next look opens another one.
            self.kernel = None;
        }
        let rules = match self.options.mode {
            FirewallMode::Nftables => generation.map(|generation| vec![generation.into()]),
            FirewallMode::Iptables => {
                let used = self
                    .iptables
                    .iter()
                    .filter(|iptables| self.nets.iter().any(|nets| nets.family() == iptables.family()));
                let mut kernel = self.kernel.as_mut();
                let numbers = used.map(|iptables| {
                    iptables.fingerprint(&self.namespace, kernel.as_deref_mut(), &self.options.rules)
                });
                numbers.collect::<Option<Vec<_>>>().map(|numbers| numbers.concat())
            }
        };
        Seen { generation, rules }
    }

    fn is_legacy(&self) -> bool {
        let legacy = |iptables: &Iptables| iptables.variant().is_some_and(|variant| !variant.is_nft);
        self.options.mode == FirewallMode::Iptables && self.iptables.iter().any(legacy)
    }

    /// Makes the rules as they should be, and removes those of the other mode; tells whether any had to be changed.
    async fn keep_rules(&mut self, failures: &mut Vec<FirewallError>) -> bool {
        let (mut changed, leftovers) = (false, self.doubt.leftovers);
        match self.options.mode {
            FirewallMode::Iptables => {
                changed |= self.keep_iptables(failures, false).await;
                if leftovers {
                    changed |= self.keep_nftables(failures, false).await;
                }
            }
            FirewallMode::Nftables => {
                changed |= self.keep_nftables(failures, true).await;
                if leftovers {
                    changed |= self.keep_iptables(failures, true).await;
                }
            }
        }
        changed
    }

    /// Looks for what stands in the way in nftables.
    fn look_for_obstacles(&mut self, pass: &mut Pass) {
        if !self.options.rules.forward {
            return;
        }
        let are_in_iptables = self.options.mode == FirewallMode::Iptables && !self.is_legacy();
        let kernel = self.kernel.as_mut();
        let found = kernel.map(|kernel| obstacles::in_nftables(kernel, &self.nets, are_in_iptables));
        // A kernel that cannot be asked has no such chains.
        let found = found.and_then(Result::ok).unwrap_or_default();
        pass.obstacles = Some(self.obstacles.iter().cloned().chain(found).collect());
    }

    /// Makes the rules in iptables as they should be, or removes them.
    async fn keep_iptables(&mut self, failures: &mut Vec<FirewallError>, remove: bool) -> bool {
        let mut changed = false;
        self.obstacles.clear();
        for iptables in &mut self.iptables {
            let family = iptables.family();
            let is_here = |nets: &&OverlayPrefixes| nets.family() == family;
            let ours: Vec<OverlayPrefixes> = self.ours.iter().filter(is_here).copied().collect();
            let nets = self.nets.iter().find(is_here).copied().filter(|_| !remove);
            let rules = self.options.rules;
            let is_needed = nets.is_some() && (rules.masquerade || rules.forward);
            // Who has no iptables has no rules in it.
            let may_have_left = self.doubt.leftovers && iptables.is_installed();
            if ours.is_empty() || !(is_needed || may_have_left) {
                continue;
            }
            let desired = Desired { nets, ours: &ours, options: rules, first: self.doubt.leftovers };
            match iptables.keep(&self.namespace, &desired).await {
                Ok(looked) => {
                    changed |= looked.changes > 0;
                    self.obstacles.extend(looked.obstacles);
                }
                Err(error @ IptablesError::NotShown { .. }) if !is_needed => {
                    tracing::debug!(%error, "leftovers in iptables are not looked for");
                }
                Err(error) => failures.push(FirewallError::Iptables(family, error)),
            }
        }
        changed
    }

    /// Makes the rules in nftables as they should be, or removes them.
    async fn keep_nftables(&mut self, failures: &mut Vec<FirewallError>, wanted: bool) -> bool {
        let mut changed = false;
        for (family, own) in IpFamily::BOTH.into_iter().zip(&mut self.tables) {
            let nets = self.nets.iter().find(|nets| wanted && nets.family() == family);
            let script = nets.and_then(|nets| nftables::rules_script(nets, &self.options.rules));
            let script = script.as_deref();
            changed |= keep_table(&self.namespace, self.kernel.as_mut(), own, script, failures).await;
        }
        changed
    }

    /// Makes the table for the port of the tunnel as it should be; tells whether it was not.
    async fn keep_tunnel(&mut self, failures: &mut Vec<FirewallError>) -> bool {
        let is_restricted = self.options.restrict_tunnel_port;
        let Some((port, own)) = self.tunnel.as_mut().filter(|_| is_restricted || self.doubt.leftovers) else {
            return false;
        };
        let script = is_restricted.then(|| tunnel_port::script(*port, &self.peers));
        keep_table(&self.namespace, self.kernel.as_mut(), own, script.as_deref(), failures).await
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> FirewallCounts {
        self.counts
    }

    /// Remembers how the pass went.
    fn settle(&mut self, pass: &Pass, seen: Seen) {
        self.counts.passes += 1;
        let repairs = [pass.rules, pass.tunnel].iter().filter(|kept| **kept == Kept::Repaired).count();
        self.counts.repairs += repairs as u64;
        self.counts.failures += pass.failures.len() as u64;
        self.pace.note(pass, self.options.audit_every);
        if pass.failures.is_empty() {
            // After a change, the next look makes sure of it.
            if self.doubt.leftovers {
                // What was of earlier networks is gone.
                self.ours.clone_from(&self.nets);
            }
            let is_changed = [pass.rules, pass.tunnel] != [Kept::InOrder; 2];
            let looked_at = if is_changed { Seen::default() } else { seen };
            self.doubt = Doubt {
                is_new: false,
                peers_are_new: false,
                leftovers: false,
                rules: false,
                tunnel: false,
                obstacles: false,
                looked_at,
            };
        } else {
            (self.doubt.rules, self.doubt.tunnel, self.doubt.looked_at) = (true, true, Seen::default());
        }
    }
}

/// Removes the table that guards a port, if there is one of an earlier run: nobody would tell it of new peers.
///
/// # Errors
///
/// [`FirewallError::Nftables`].
pub async fn open_port(namespace: &Namespace, port: u16) -> Result<(), FirewallError> {
    let (mut kernel, mut failures) = (Nftables::open_in(namespace).ok(), Vec::new());
    let mut own = OwnTable::new(tunnel_port::table(port));
    keep_table(namespace, kernel.as_mut(), &mut own, None, &mut failures).await;
    failures.pop().map_or(Ok(()), Err)
}

/// Waits for the next notice; a broken socket is given up. Without one there are no notices.
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

/// Makes one table as it should be; tells whether it was not.
async fn keep_table(
    namespace: &Namespace,
    kernel: Option<&mut Nftables>,
    own: &mut OwnTable,
    script: Option<&str>,
    failures: &mut Vec<FirewallError>,
) -> bool {
    let kept = match kernel {
        Some(kernel) => own.keep(namespace, kernel, script).await,
        None => Err(NftablesError::Unavailable),
    };
    match kept {
        Ok(changed) => changed,
        // A kernel without nftables has no table to remove.
        Err(NftablesError::Kernel(_) | NftablesError::Unavailable) if script.is_none() => false,
        Err(error) => {
            failures.push(FirewallError::Nftables(own.table().clone(), error));
            false
        }
    }
}
