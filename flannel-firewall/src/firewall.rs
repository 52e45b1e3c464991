//! Keeping the rules: look, put right, wait for a reason to look again.
//!
//! Reasons are: what is wanted changed; the kernel told of a change of a chain or table that matters; the audit found that
//! something changed, though no notice said so; a failure is to be tried again. Rules of a legacy iptables are not in
//! nftables, so the kernel tells nothing of them, and it is the audit that finds changes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use flannel_core::Backoff;
use flannel_netlink::{Family, Namespace, NftFamily, NftMonitor, NftNotice, NftTable, Nftables};
use tokio::time::{Instant, sleep_until};

use crate::iptables::{self, Desired, Iptables, IptablesError};
use crate::nftables::{self, NftablesError, OwnTable};
use crate::rules::{Nets, RuleOptions};
use crate::{obstacles, tunnel_port};

/// What a person or program does to a rule set comes in several parts; and the pauses when somebody undoes each repair at
/// once, as a second flanneld with the same tables does.
const REPAIRS: Backoff = Backoff { first: Duration::from_millis(20), longest: Duration::from_secs(60) };
/// The pauses after failures.
const FAILURES: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
/// A repair so long after the last one is a new story.
const CALM: Duration = Duration::from_secs(10);
/// A person may undo as many repairs in a row without being taken for a program.
const PATIENCE: u32 = 10;

/// Where the rules are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FirewallMode {
    /// In iptables, whichever variant the host has.
    Iptables,
    /// In tables of their own in nftables.
    Nftables,
}

/// What a [`Firewall`] is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FirewallOptions {
    /// Where the rules are.
    pub mode: FirewallMode,
    /// Which rules there are.
    pub rules: RuleOptions,
    /// How often it is looked whether something changed that no notice told of.
    pub audit_every: Duration,
    /// The UDP port of the tunnel, if it has one.
    pub tunnel_port: Option<u16>,
    /// Whether only peers may send to that port.
    pub restrict_tunnel_port: bool,
}

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
    nets: Vec<Nets>,
    /// The networks that this host has and those that it had: rules about these are ours.
    ours: Vec<Nets>,
    peers: BTreeSet<IpAddr>,
    iptables: [Iptables; 2],
    tables: [OwnTable; 2],
    tunnel: Option<(u16, OwnTable)>,
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
    /// Earlier runs, earlier versions and the other mode may have left something.
    leftovers: bool,
    rules: bool,
    tunnel: bool,
    /// What there was at the last look that found everything in order.
    looked_at: Option<Seen>,
}

/// What can be seen of all rules of the host without reading them; it differs if somebody changed any.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    /// The number of the last change in nftables.
    generation: u32,
    /// The tables of a legacy iptables, where that is what we use.
    legacy: Vec<u64>,
}

/// When to look.
#[derive(Debug)]
struct Pace {
    audit_at: Instant,
    /// When the next pass is due, if there is a reason for one.
    pass_at: Option<Instant>,
    repairs: u32,
    last_repair: Option<Instant>,
    failures: u32,
}

/// What a pass did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Pass {
    /// Whether rules were changed.
    pub changed: bool,
    /// Whether that was because somebody had changed them.
    pub repaired: bool,
    /// The same for the table that guards the port of the tunnel.
    pub repaired_tunnel: bool,
    /// What could not be done; it is tried again.
    pub failures: Vec<FirewallError>,
    /// What stands in the way of forwarded packets, each with what to do about it; none if it was not looked for.
    pub obstacles: Option<Vec<String>>,
}

/// What a [`Firewall`] did so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FirewallCounts {
    /// How often there was a reason to look.
    pub passes: u64,
    /// How often somebody had changed rules, and they were put right.
    pub repairs: u64,
    /// How many times something could not be done.
    pub failures: u64,
}

/// Why rules are not as they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// Rules in iptables.
    #[error("{0} rules in iptables")]
    Iptables(Family, #[source] IptablesError),
    /// A table in nftables.
    #[error("table {0} in nftables")]
    Nftables(NftTable, #[source] NftablesError),
}

impl FirewallError {
    /// Tells whether it is because the program is not installed.
    #[must_use]
    pub fn is_not_installed(&self) -> bool {
        match self {
            Self::Iptables(_, IptablesError::Program(error))
            | Self::Nftables(_, NftablesError::Program(error)) => error.is_not_installed(),
            Self::Iptables(..) | Self::Nftables(..) => false,
        }
    }
}

impl Firewall {
    /// Takes what is wanted. `nets` are the networks of the host, `before` those that an earlier run on this host had.
    ///
    /// Nothing happens before the first [`pass`](Self::pass).
    #[must_use]
    pub fn new(namespace: Namespace, options: FirewallOptions, nets: Vec<Nets>, before: &[Nets]) -> Self {
        let mut firewall = Self {
            namespace,
            options,
            nets: Vec::new(),
            ours: before.to_vec(),
            peers: BTreeSet::new(),
            iptables: Family::BOTH.map(Iptables::new),
            tables: Family::BOTH.map(|family| OwnTable::new(nftables::rules_table(family))),
            tunnel: options.tunnel_port.map(|port| (port, OwnTable::new(tunnel_port::table(port)))),
            kernel: None,
            monitor: None,
            doubt: Doubt { is_new: true, leftovers: true, rules: true, tunnel: true, looked_at: None },
            pace: Pace {
                audit_at: Instant::now(),
                pass_at: None,
                repairs: 0,
                last_repair: None,
                failures: 0,
            },
            counts: FirewallCounts::default(),
        };
        firewall.set_nets(nets);
        firewall
    }

    /// Changes the networks of the host; rules about the earlier ones go with the next pass.
    pub fn set_nets(&mut self, nets: Vec<Nets>) {
        if nets == self.nets {
            return;
        }
        self.ours.extend(nets.iter().filter(|nets| !self.ours.contains(nets)).copied().collect::<Vec<_>>());
        self.nets = nets;
        (self.doubt.is_new, self.doubt.leftovers, self.doubt.rules) = (true, true, true);
    }

    /// Changes who may use the port of the tunnel: the public addresses of all peers.
    pub fn set_peers(&mut self, peers: BTreeSet<IpAddr>) {
        if peers != self.peers {
            self.peers = peers;
            (self.doubt.is_new, self.doubt.tunnel) = (true, true);
        }
    }

    /// Looks at what there is reason to look at, and makes it as it should be.
    pub async fn pass(&mut self) -> Pass {
        self.listen();
        let seen = self.see();
        if seen.is_none() || seen != self.doubt.looked_at {
            (self.doubt.rules, self.doubt.tunnel) = (true, true);
        }
        let mut pass = Pass::default();
        let is_new = self.doubt.is_new;
        if self.doubt.rules {
            self.keep_rules(&mut pass).await;
        }
        pass.repaired = pass.changed && !is_new;
        if self.doubt.tunnel {
            let changed = self.keep_tunnel(&mut pass).await;
            pass.repaired_tunnel = changed && !is_new;
        }
        self.settle(&pass, seen);
        pass
    }

    /// Waits until there is a reason for another pass. May be dropped at any time.
    pub async fn wait(&mut self) {
        while !(self.doubt.rules || self.doubt.tunnel) {
            tokio::select! {
                notice = next_notice(&mut self.monitor) => self.hear(notice),
                () = sleep_until(self.pace.audit_at) => self.audit(),
            }
        }
        sleep_until(self.pace.next_pass(self.doubt.is_new)).await;
    }

    /// Looks whether there is anything to look at.
    fn audit(&mut self) {
        self.pace.audit_at = Instant::now() + self.options.audit_every;
        self.listen();
        let seen = self.see();
        if seen.is_none() || seen != self.doubt.looked_at {
            (self.doubt.rules, self.doubt.tunnel) = (true, true);
        }
    }

    fn hear(&mut self, notice: Option<NftNotice>) {
        match notice {
            Some(NftNotice::Changed { table, chain }) => {
                self.doubt.rules |= self.is_about_rules(&table, chain.as_deref());
                self.doubt.tunnel |= self.tunnel.as_ref().is_some_and(|(_, own)| *own.table() == table);
            }
            Some(NftNotice::Overrun) | None => (self.doubt.rules, self.doubt.tunnel) = (true, true),
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

    /// What can be seen without a program; none if that is not enough.
    fn see(&mut self) -> Option<Seen> {
        let is_legacy = self.is_legacy();
        // A kernel without nftables never counts a change there.
        let generation = self.kernel.as_mut().and_then(|kernel| kernel.generation().ok());
        let generation = generation.or(is_legacy.then_some(0))?;
        let mut legacy = Vec::new();
        for iptables in self.iptables.iter().filter(|_| is_legacy) {
            let is_used = self.nets.iter().any(|nets| nets.family() == iptables.family());
            if is_used {
                legacy.extend(iptables.fingerprint(&self.namespace, &self.options.rules)?);
            }
        }
        Some(Seen { generation, legacy })
    }

    fn is_legacy(&self) -> bool {
        let legacy = |iptables: &Iptables| iptables.variant().is_some_and(|variant| !variant.is_nft);
        self.options.mode == FirewallMode::Iptables && self.iptables.iter().any(legacy)
    }

    async fn keep_rules(&mut self, pass: &mut Pass) {
        match self.options.mode {
            FirewallMode::Iptables => {
                self.keep_iptables(pass, false).await;
                if self.doubt.leftovers {
                    self.keep_nftables(pass, false).await;
                }
            }
            FirewallMode::Nftables => {
                self.keep_nftables(pass, true).await;
                if self.doubt.leftovers {
                    self.keep_iptables(pass, true).await;
                }
            }
        }
        if self.options.rules.forward {
            let are_in_iptables = self.options.mode == FirewallMode::Iptables && !self.is_legacy();
            let kernel = self.kernel.as_mut();
            let found = kernel.map(|kernel| obstacles::in_nftables(kernel, &self.nets, are_in_iptables));
            // A kernel that cannot be asked has no such chains.
            pass.obstacles.get_or_insert_default().extend(found.and_then(Result::ok).unwrap_or_default());
        }
    }

    /// Makes the rules in iptables as they should be, or removes them.
    async fn keep_iptables(&mut self, pass: &mut Pass, remove: bool) {
        for iptables in &mut self.iptables {
            let family = iptables.family();
            let is_here = |nets: &&Nets| nets.family() == family;
            let ours: Vec<Nets> = self.ours.iter().filter(is_here).copied().collect();
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
                    pass.changed |= looked.changes > 0;
                    if is_needed && rules.forward {
                        pass.obstacles.get_or_insert_default().extend(looked.obstacles);
                    }
                }
                Err(error @ IptablesError::NotShown { .. }) if !is_needed => {
                    tracing::debug!(%error, "leftovers in iptables are not looked for");
                }
                Err(error) => pass.failures.push(FirewallError::Iptables(family, error)),
            }
        }
    }

    /// Makes the rules in nftables as they should be, or removes them.
    async fn keep_nftables(&mut self, pass: &mut Pass, wanted: bool) {
        for (family, own) in Family::BOTH.into_iter().zip(&mut self.tables) {
            let nets = self.nets.iter().find(|nets| wanted && nets.family() == family);
            let script = nets.and_then(|nets| nftables::rules_script(nets, &self.options.rules));
            keep_table(&self.namespace, self.kernel.as_mut(), own, script.as_deref(), pass).await;
        }
    }

    /// Makes the table for the port of the tunnel as it should be; tells whether it was not.
    async fn keep_tunnel(&mut self, pass: &mut Pass) -> bool {
        let is_restricted = self.options.restrict_tunnel_port;
        let Some((port, own)) = self.tunnel.as_mut().filter(|_| is_restricted || self.doubt.leftovers) else {
            return false;
        };
        let script = is_restricted.then(|| tunnel_port::script(*port, &self.peers));
        keep_table(&self.namespace, self.kernel.as_mut(), own, script.as_deref(), pass).await
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> FirewallCounts {
        self.counts
    }

    /// Remembers how the pass went.
    fn settle(&mut self, pass: &Pass, seen: Option<Seen>) {
        self.counts.passes += 1;
        self.counts.repairs += u64::from(pass.repaired) + u64::from(pass.repaired_tunnel);
        self.counts.failures += pass.failures.len() as u64;
        self.pace.note(pass, self.options.audit_every);
        if pass.failures.is_empty() {
            let is_verified = !pass.changed;
            self.doubt = Doubt {
                is_new: false,
                leftovers: false,
                rules: false,
                tunnel: false,
                looked_at: seen.filter(|_| is_verified),
            };
        } else {
            (self.doubt.rules, self.doubt.tunnel, self.doubt.looked_at) = (true, true, None);
        }
    }
}

/// Waits for the next notice; a broken socket is given up. Without one there are no notices.
async fn next_notice(monitor: &mut Option<NftMonitor>) -> Option<NftNotice> {
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
    pass: &mut Pass,
) -> bool {
    let Some(kernel) = kernel else {
        if script.is_some() {
            let error = FirewallError::Nftables(own.table().clone(), NftablesError::Unavailable);
            pass.failures.push(error);
        }
        return false;
    };
    let changed = match own.keep(namespace, kernel, script).await {
        Ok(changed) => changed,
        // A kernel without nftables has no table to remove.
        Err(NftablesError::Kernel(_)) if script.is_none() => false,
        Err(error) => {
            pass.failures.push(FirewallError::Nftables(own.table().clone(), error));
            false
        }
    };
    pass.changed |= changed;
    changed
}

impl Pace {
    fn note(&mut self, pass: &Pass, audit_every: Duration) {
        let now = Instant::now();
        self.audit_at = now + audit_every;
        self.pass_at = None;
        self.failures = if pass.failures.is_empty() { 0 } else { self.failures.saturating_add(1) };
        if pass.repaired || pass.repaired_tunnel {
            self.repairs = if self.is_quarrel(now) { self.repairs.saturating_add(1) } else { 1 };
            self.last_repair = Some(now);
        }
    }

    /// The time of the next pass. Reasons that come after the first one do not put it off.
    fn next_pass(&mut self, is_new: bool) -> Instant {
        let at = Instant::now() + self.pause(is_new);
        *self.pass_at.insert(self.pass_at.map_or(at, |earlier| earlier.min(at)))
    }

    /// How long to wait before a pass for which there is a reason. What is wanted newly never waits for a quarrel.
    fn pause(&self, is_new: bool) -> Duration {
        if self.failures > 0 {
            return FAILURES.delay(self.failures - 1, 0.0);
        }
        let is_quarrel = !is_new && self.is_quarrel(Instant::now());
        REPAIRS.delay(if is_quarrel { self.excess() } else { 0 }, 0.0)
    }

    /// Tells whether a repair now would follow closely on the last one.
    fn is_quarrel(&self, now: Instant) -> bool {
        self.last_repair.is_some_and(|last| now - last <= CALM + REPAIRS.delay(self.excess(), 0.0) * 2)
    }

    /// How many repairs in a row were more than a person would undo.
    fn excess(&self) -> u32 {
        self.repairs.saturating_sub(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace { audit_at: Instant::now(), pass_at: None, repairs: 0, last_repair: None, failures: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_person_undoes_is_repaired_at_once_and_a_program_that_always_undoes_it_waits_longer_each_time()
     {
        let mut pace = pace();
        let repaired = Pass { repaired: true, changed: true, ..Pass::default() };
        let mut pauses = Vec::new();
        for _ in 0..30 {
            pauses.push(pace.pause(false));
            tokio::time::sleep(pace.pause(false)).await;
            pace.note(&repaired, CALM);
        }
        assert!(pauses[..10].iter().all(|pause| *pause == REPAIRS.first), "{pauses:?}");
        assert!(pauses[11..].is_sorted() && pauses[29] == REPAIRS.longest, "{pauses:?}");
        assert_eq!(pace.pause(true), REPAIRS.first, "what is wanted newly does not wait");
        tokio::time::sleep(REPAIRS.longest * 3).await;
        assert_eq!(pace.pause(false), REPAIRS.first, "it is calm again");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_and_reasons_that_come_meanwhile_put_nothing_off() {
        let mut pace = pace();
        let error = NftablesError::Program(crate::ProgramError::TimedOut { program: "nft" });
        let error = FirewallError::Nftables(nftables::rules_table(Family::V4), error);
        let failed = Pass { failures: vec![error], ..Pass::default() };
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            pace.note(&failed, CALM);
            assert_eq!(pace.pause(true), Duration::from_secs(seconds));
        }
        let due = pace.next_pass(false);
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(pace.next_pass(false), due);
    }
}
