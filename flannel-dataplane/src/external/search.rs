//! The search for the external interface. Pure.
//!
//! The first of these rules that yields an interface decides:
//!
//! 1. interfaces: each item, a name or an address;
//! 2. patterns: each, matched against addresses and then against names;
//! 3. reachability: the interface of the kernel's route to an address.
//!
//! Without any of these rules:
//!
//! 1. the interface that has the public address; if none has, the host is behind a NAT;
//! 2. the interface of the default route.
//!
//! The interface needs an address of each address family of the network. Before the families are known, [`search_any`]
//! tries one and then the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::{ExternalInterface, IpFamilies, PublicAddrs};
use tracing::{info, warn};

use super::address::{as_v4, as_v6, is_global, preferred_over, usable};
use super::facts::{DefaultRoute, HostFacts, LinkFacts};
use super::pattern::InterfacePattern;

/// The rules of a selection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Criteria {
    /// Names or addresses, in order of preference. An empty item, which a unit file makes of an unset variable, means the
    /// interface of the default route.
    pub(super) interfaces: Vec<String>,
    /// Patterns, in order of preference. An empty pattern means the interface of the default route.
    pub(super) patterns: Vec<InterfacePattern>,
    /// An address that must be reachable.
    pub(super) can_reach: Option<IpAddr>,
    /// The IPv4 address that peers use.
    pub(super) public_v4: Option<Ipv4Addr>,
    /// The IPv6 address that peers use.
    pub(super) public_v6: Option<Ipv6Addr>,
    /// The addresses of the lease that this host held before. Each is preferred while the interface has it.
    pub(super) previous: PublicAddrs,
}

impl Criteria {
    /// Returns the addresses of the previous lease that may be the interface's own; a given public address isn't.
    pub(super) fn previous_own(&self) -> PublicAddrs {
        PublicAddrs {
            v4: self.previous.v4.filter(|_| self.public_v4.is_none()),
            v6: self.previous.v6.filter(|_| self.public_v6.is_none()),
        }
    }
}

/// The rule that selected an interface, which decides how it is tracked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SelectedBy {
    /// Its name, or a pattern that matches its name.
    Name,
    /// An address that it has.
    Address(IpAddr),
    /// A pattern that matches its addresses.
    Pattern,
    /// The route to an address that must be reachable.
    Reachability,
    /// The default route.
    DefaultRoute,
}

/// A selected interface. It also has addresses of families that the network doesn't use, if they are global.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Selection {
    pub(super) external: ExternalInterface,
    pub(super) selected_by: SelectedBy,
}

/// The outcome of a search, and its log lines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct SearchOutcome {
    pub(super) selection: Result<Selection, SearchError>,
    /// The families that the search required.
    families: IpFamilies,
    log: Vec<LogLine>,
}

/// A log line.
#[derive(Clone, Debug, Eq, PartialEq)]
enum LogLine {
    Info(String),
    Warning(String),
}

/// Why no interface was selected. Each message is one line that lists the interfaces of the host.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum SearchError {
    /// No rule yielded an interface.
    #[error(
        "Failed to find interface to use that matches the interfaces and/or regexes provided: {reasons}; \
         this host has {present}"
    )]
    NoMatch {
        /// The reason for each rule.
        reasons: String,
        /// The interfaces of the host.
        present: String,
    },
    /// There are no rules, and the host has no default route or no address yet.
    #[error(
        "Failed to find any valid interface to use: {reason}; -iface can name one; this host has {present}"
    )]
    NoDefault {
        /// What is missing.
        reason: String,
        /// The interfaces of the host.
        present: String,
    },
}

/// Searches for the external interface of a network with these families.
pub(super) fn search(facts: &HostFacts, criteria: &Criteria, families: IpFamilies) -> SearchOutcome {
    let mut search = Search { facts, criteria, families, log: Vec::new() };
    let has_rules =
        !criteria.interfaces.is_empty() || !criteria.patterns.is_empty() || criteria.can_reach.is_some();
    let present = || describe_links(facts);
    let selection = if has_rules {
        search.by_rules().map_err(|reasons| SearchError::NoMatch { reasons, present: present() })
    } else {
        search.by_default().map_err(|reason| SearchError::NoDefault { reason, present: present() })
    };
    SearchOutcome { selection, families, log: search.log }
}

/// Searches for the external interface before the families of the network are known: with an IPv4 address or, failing
/// that, with an IPv6 address.
pub(super) fn search_any(facts: &HostFacts, criteria: &Criteria) -> SearchOutcome {
    let with_v4 = search(facts, criteria, IpFamilies::V4);
    if with_v4.selection.is_ok() {
        return with_v4;
    }
    let with_v6 = search(facts, criteria, IpFamilies::V6);
    let mut addresses = facts.links.iter().flat_map(|link| &link.addresses);
    let has_v4 = addresses.any(|facts| facts.address.is_ipv4() && !facts.address.is_loopback());
    if with_v6.selection.is_ok() || !has_v4 { with_v6 } else { with_v4 }
}

impl SearchOutcome {
    /// Logs the outcome in upstream flannel's words, except what was logged for `before`.
    pub(super) fn log(&self, criteria: &Criteria, before: Option<&Self>) {
        for line in self.lines(criteria, before) {
            match line {
                LogLine::Info(line) => info!("{line}"),
                LogLine::Warning(line) => warn!("{line}"),
            }
        }
    }

    fn lines(&self, criteria: &Criteria, before: Option<&Self>) -> Vec<LogLine> {
        let has_same_interface = |before: &&Self| match (&before.selection, &self.selection) {
            (Ok(before), Ok(now)) => before.external == now.external,
            _ => false,
        };
        let before = before.filter(has_same_interface);
        let mut lines = if before.is_none() { self.log.clone() } else { Vec::new() };
        if let Ok(selection) = &self.selection {
            let logged = before.map(|before| before.families).unwrap_or_default();
            let IpFamilies { v4, v6 } = self.families;
            let families = IpFamilies { v4: v4 && !logged.v4, v6: v6 && !logged.v6 };
            lines.extend(announcement(&selection.external, criteria, families));
        }
        lines
    }
}

fn announcement(external: &ExternalInterface, criteria: &Criteria, families: IpFamilies) -> Vec<LogLine> {
    let name = &external.name;
    let mut lines = Vec::new();
    if let Some(address) = external.v4.filter(|_| families.v4) {
        lines.push(format!("Using interface with name {name} and address {address}"));
        lines.push(match criteria.public_v4 {
            Some(public) => format!("Using {public} as external address"),
            None => format!("Defaulting external address to interface address ({address})"),
        });
    }
    if let Some(address) = external.v6.filter(|_| families.v6) {
        lines.push(format!("Using interface with name {name} and v6 address {address}"));
        lines.push(match criteria.public_v6 {
            Some(public) => format!("Using {public} as external v6 address"),
            None => format!("Defaulting external v6 address to interface address ({address})"),
        });
    }
    lines.into_iter().map(LogLine::Info).collect()
}

/// Lists the interfaces of the host with their addresses, at most 20.
fn describe_links(facts: &HostFacts) -> String {
    /// Enough to find a misspelt name, few enough for a line.
    const SHOWN: usize = 20;
    if facts.links.is_empty() {
        return "no interface".to_owned();
    }
    let mut words: Vec<String> = facts.links.iter().take(SHOWN).map(describe_link).collect();
    if facts.links.len() > SHOWN {
        words.push(format!("{} more", facts.links.len() - SHOWN));
    }
    words.join(", ")
}

fn describe_link(link: &LinkFacts) -> String {
    let addresses: Vec<String> = link.addresses.iter().map(|facts| facts.address.to_string()).collect();
    if addresses.is_empty() {
        format!("{} (no address)", link.name)
    } else {
        format!("{} ({})", link.name, addresses.join(" "))
    }
}

/// A running search.
struct Search<'a> {
    facts: &'a HostFacts,
    criteria: &'a Criteria,
    families: IpFamilies,
    log: Vec<LogLine>,
}

/// Addresses of an interface that a rule has decided.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct FixedAddrs {
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
}

impl From<IpAddr> for FixedAddrs {
    fn from(address: IpAddr) -> Self {
        Self { v4: as_v4(address), v6: as_v6(address) }
    }
}

impl<'a> Search<'a> {
    /// Returns the interface of the first rule that yields one, or the reason for each rule.
    fn by_rules(&mut self) -> Result<Selection, String> {
        let Criteria { interfaces, patterns, can_reach, .. } = self.criteria;
        let mut reasons = Vec::new();
        for item in interfaces {
            match self.by_item(item) {
                Ok(selection) => return Ok(selection),
                Err(reason) => self.pass_over(&mut reasons, "-iface=", "", item, &reason),
            }
        }
        for pattern in patterns {
            match self.by_pattern(pattern) {
                Ok(selection) => return Ok(selection),
                Err(reason) => self.pass_over(&mut reasons, "-iface-regex=", "", pattern.as_str(), &reason),
            }
        }
        if let Some(address) = can_reach {
            match self.by_reachability(*address) {
                Ok(selection) => return Ok(selection),
                Err(reason) => {
                    let address = address.to_string();
                    let (flag, upstream_name) = ("-iface-can-reach=", "ifaceCanReach: ");
                    self.pass_over(&mut reasons, flag, upstream_name, &address, &reason);
                }
            }
        }
        Err(reasons.join("; "))
    }

    fn pass_over(&mut self, reasons: &mut Vec<String>, flag: &str, prefix: &str, value: &str, reason: &str) {
        self.info(format!("Could not find valid interface matching {prefix}{value}: {reason}"));
        reasons.push(format!("{flag}{value}: {reason}"));
    }

    /// Returns the interface without any rule.
    fn by_default(&mut self) -> Result<Selection, String> {
        let Criteria { public_v4, public_v6, .. } = self.criteria;
        let v4 = public_v4.filter(|_| self.families.v4).map(|ip| ("public-ip", IpAddr::V4(ip)));
        let v6 = public_v6.filter(|_| self.families.v6).map(|ip| ("public-ipv6", IpAddr::V6(ip)));
        if let Some((flag, address)) = v4.or(v6) {
            self.info(format!("Searching for interface using {address}"));
            if let Some(link) = self.facts.owner(address) {
                return self.with_addresses(link, address.into(), SelectedBy::Address(address));
            }
            self.log.push(LogLine::Warning(format!(
                "no interface has the address {address} of -{flag}; using the interface of the default route"
            )));
        }
        self.by_default_route()
    }

    /// Returns the interface with a name or an address.
    fn by_item(&mut self, item: &str) -> Result<Selection, String> {
        if item.is_empty() {
            return self.by_default_route();
        }
        let failed = |reason: &str| format!("error looking up interface {item}: {reason}");
        if let Ok(address) = item.parse() {
            self.info(format!("Searching for interface using {address}"));
            let link = self.facts.owner(address).ok_or_else(|| failed("No interface with given IP found"))?;
            return self.with_addresses(link, address.into(), SelectedBy::Address(address));
        }
        let link = self.facts.link_with_any_name(item);
        let link = link.ok_or_else(|| failed("route ip+net: no such network interface"))?;
        self.with_addresses(link, FixedAddrs::default(), SelectedBy::Name)
    }

    /// Returns the first interface whose addresses match a pattern or, failing that, the first whose name does.
    fn by_pattern(&mut self, pattern: &InterfacePattern) -> Result<Selection, String> {
        if pattern.as_str().is_empty() {
            return self.by_default_route();
        }
        if let Some((link, fixed)) = first_match(self.facts, pattern, self.families) {
            return self.with_addresses(link, fixed, SelectedBy::Pattern);
        }
        let named = self.facts.links.iter().find(|link| pattern.matches(&link.name));
        let link = named.ok_or_else(|| {
            let candidates: Vec<String> =
                self.facts.links.iter().map(|link| self.describe_candidate(link)).collect();
            format!(
                "could not match pattern {} to any of the available network interfaces ({})",
                pattern.as_str(),
                candidates.join(", ")
            )
        })?;
        self.with_addresses(link, FixedAddrs::default(), SelectedBy::Name)
    }

    /// Describes an interface with the addresses that a pattern was matched against.
    fn describe_candidate(&self, link: &LinkFacts) -> String {
        let v4 = usable(link, as_v4).filter(|_| self.families.v4).map(|(_, address)| address.to_string());
        let v6 = usable(link, as_v6).filter(|_| self.families.v6).map(|(_, address)| address.to_string());
        format!("{}:[{}]", link.name, v4.chain(v6).collect::<Vec<_>>().join(" "))
    }

    /// Returns the interface of the kernel's route to an address.
    fn by_reachability(&mut self, address: IpAddr) -> Result<Selection, String> {
        let lookup = self.facts.lookup.as_ref().ok_or("no route was looked up")?.clone()?;
        let link = self.facts.link(lookup.index);
        let link =
            link.ok_or_else(|| format!("the interface {} to {address} does not exist", lookup.index))?;
        // The source of an IPv6 packet may be a temporary address.
        let fixed = FixedAddrs { v4: lookup.source.and_then(as_v4), v6: None };
        self.with_addresses(link, fixed, SelectedBy::Reachability)
    }

    fn by_default_route(&mut self) -> Result<Selection, String> {
        let link = self.default_link()?;
        self.with_addresses(link, FixedAddrs::default(), SelectedBy::DefaultRoute)
    }

    /// Returns the interface of the default routes of all families in use.
    fn default_link(&mut self) -> Result<&'a LinkFacts, String> {
        self.info("Determining IP address of default interface".to_owned());
        let (facts, families) = (self.facts, self.families);
        let v4 = families.v4.then(|| route_link(facts, &facts.default_routes_v4)).transpose()?;
        let v6 = families.v6.then(|| route_link(facts, &facts.default_routes_v6)).transpose()?;
        if let (Some(v4), Some(v6)) = (v4, v6)
            && v4.index != v6.index
        {
            return Err(format!(
                "v6 default route interface {} must be the same with v4 default route interface {}",
                v6.name, v4.name
            ));
        }
        v4.or(v6).ok_or_else(|| "neither IPv4 nor IPv6 is enabled".to_owned())
    }

    /// Adds addresses to an interface: those that the rule fixed, the preferred ones, and the public ones.
    fn with_addresses(
        &mut self,
        link: &LinkFacts,
        fixed: FixedAddrs,
        selected_by: SelectedBy,
    ) -> Result<Selection, String> {
        let missing =
            |family: &str| Err(format!("failed to find {family} address for interface {}", link.name));
        let Criteria { public_v4, public_v6, .. } = *self.criteria;
        let previous = self.criteria.previous_own();
        // If the public address is one of this host, it must be on the interface that peers reach.
        let own_v6 = public_v6.filter(|_| self.families.v6 && fixed.v6.is_none()).map(IpAddr::V6);
        let own_v6 = own_v6.and_then(|address| self.facts.owner(address).map(|link| (address, link)));
        if let (SelectedBy::Address(_), Some((_, v6_link))) = (selected_by, own_v6)
            && v6_link.index != link.index
        {
            return Err(format!(
                "v6 interface {} must be the same with v4 interface {}",
                v6_link.name, link.name
            ));
        }
        let own_v6 = own_v6.filter(|(_, v6_link)| v6_link.index == link.index).and_then(|(v6, _)| as_v6(v6));
        let v4 = fixed.v4.or_else(|| preferred_over(link, previous.v4, as_v4));
        let v6 = fixed.v6.or(own_v6).or_else(|| preferred_over(link, previous.v6, as_v6));
        match (v4, v6) {
            (None, _) if self.families.v4 => return missing("IPv4"),
            (_, None) if self.families.v6 => return missing("IPv6"),
            _ => {}
        }
        // A link-local address of a family that is not in use doesn't reach hosts on other links.
        let v4 = v4.filter(|v4| self.families.v4 || is_global(IpAddr::V4(*v4)));
        let v6 = v6.filter(|v6| self.families.v6 || is_global(IpAddr::V6(*v6)));
        if link.mtu == 0 {
            let address = v4.map(IpAddr::V4).or(v6.map(IpAddr::V6));
            let address = address.map_or_else(|| link.name.clone(), |address| address.to_string());
            return Err(format!("failed to determine MTU for {address} interface"));
        }
        let public = PublicAddrs {
            v4: v4.map(|own| public_v4.unwrap_or(own)),
            v6: v6.map(|own| public_v6.unwrap_or(own)),
        };
        let external = ExternalInterface::new(&link.name, link.index, link.mtu, PublicAddrs { v4, v6 });
        Ok(Selection { external: external.with_public(public), selected_by })
    }

    fn info(&mut self, line: String) {
        self.log.push(LogLine::Info(line));
    }
}

/// Returns the first interface that has a matching address of each family.
pub(super) fn first_match<'f>(
    facts: &'f HostFacts,
    pattern: &InterfacePattern,
    families: IpFamilies,
) -> Option<(&'f LinkFacts, FixedAddrs)> {
    facts.links.iter().find_map(|link| {
        let v4 = usable(link, as_v4).map(|(_, address)| address);
        let v6 = usable(link, as_v6).map(|(_, address)| address);
        let fixed = FixedAddrs {
            v4: v4.filter(|_| families.v4).find(|address| pattern.matches(&address.to_string())),
            v6: v6.filter(|_| families.v6).find(|address| pattern.matches(&address.to_string())),
        };
        let has_all = fixed.v4.is_some() == families.v4 && fixed.v6.is_some() == families.v6;
        (has_all && fixed != FixedAddrs::default()).then_some((link, fixed))
    })
}

/// Returns the interface of the first route that has one.
fn route_link<'f>(facts: &'f HostFacts, routes: &[DefaultRoute]) -> Result<&'f LinkFacts, String> {
    let failed = |reason: String| format!("failed to get default interface: {reason}");
    if routes.is_empty() {
        return Err(failed("unable to find default route".to_owned()));
    }
    let index = routes.iter().find_map(|route| route.index);
    let index =
        index.ok_or_else(|| failed("found default route but could not determine interface".into()))?;
    let link = facts.link(index);
    link.ok_or_else(|| failed(format!("interface {index} of the default route does not exist")))
}

#[cfg(test)]
mod tests;
