//! Which interface carries the traffic between hosts, and which address peers reach it at.
//!
//! [`choose`] decides from [`Facts`] that were read before. The first of these that fits is taken:
//!
//! 1. `-iface`: each item, a name or an address.
//! 2. `-iface-regex`: each pattern, on addresses and then on names.
//! 3. `-iface-can-reach`: the interface by which the kernel would send there.
//!
//! If none of them is given:
//!
//! 1. `-public-ip`, `-public-ipv6`: the interface that has this address; if none has, there is address translation
//!    between this host and its peers.
//! 2. The interface of the default route.
//!
//! What must fit depends on the families of the network, which its configuration tells. Before that is known,
//! [`choose_any`] finds out whether there can be one. [`follow()`] decides what becomes of the choice while the daemon runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::{ExternalInterface, NetworkConfig};
use tracing::{info, warn};

mod address;
mod pattern;
mod search;
mod track;

use address::{as_v4, as_v6, is_global, owner, preferred};
pub use pattern::Pattern;
use search::Search;
pub use track::{Basis, Followed, follow};

/// What the kernel says about the interfaces of this host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// Every interface, in the order of their indexes.
    pub links: Vec<LinkFact>,
    /// The IPv4 default routes of the main table in the kernel's order, which is that of their metrics.
    pub default_routes_v4: Vec<DefaultRoute>,
    /// The same for IPv6.
    pub default_routes_v6: Vec<DefaultRoute>,
    /// How a packet would go to the address of `-iface-can-reach`, or why it would not; none if that was not asked.
    pub way: Option<Result<Way, String>>,
}

/// One interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinkFact {
    /// The number of the interface.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The alternative names of the interface, which `-iface` also accepts.
    pub alternative_names: Vec<String>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses of both families, in the kernel's order.
    pub addresses: Vec<AddressFact>,
}

/// One address of an interface; the flags are those of `linux/if_addr.h`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AddressFact {
    /// The address.
    pub address: IpAddr,
    /// `IFA_F_PERMANENT`: it does not expire, as one from DHCP does.
    pub permanent: bool,
    /// `IFA_F_DEPRECATED`: it should not be used for anything new.
    pub deprecated: bool,
    /// `IFA_F_TEMPORARY` of IPv6, which is the same bit as `IFA_F_SECONDARY` of IPv4.
    pub temporary: bool,
}

/// One default route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DefaultRoute {
    /// The index of the interface; of the first next hop that works, if there are several. None for a route that only
    /// rejects.
    pub index: Option<u32>,
}

/// How a packet of this host would go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    /// The index of the interface.
    pub index: u32,
    /// The address that it would come from.
    pub source: Option<IpAddr>,
}

/// What the operator asks for.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wishes {
    /// The values of `-iface`: names or addresses in the order of preference. An empty value, which a unit
    /// makes of a variable that is not set, stands for the interface of the default route.
    pub interfaces: Vec<String>,
    /// The values of `-iface-regex`, of which the same holds.
    pub patterns: Vec<Pattern>,
    /// The value of `-iface-can-reach`.
    pub can_reach: Option<IpAddr>,
    /// The value of `-public-ip`.
    pub public_v4: Option<Ipv4Addr>,
    /// The value of `-public-ipv6`.
    pub public_v6: Option<Ipv6Addr>,
}

/// The address families of a network, of which its interface needs an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Families {
    /// Whether hosts reach each other over IPv4.
    pub v4: bool,
    /// Whether hosts reach each other over IPv6.
    pub v6: bool,
}

impl Families {
    /// The families of a network.
    pub fn of(config: &NetworkConfig) -> Self {
        Self { v4: config.ipv4.is_some(), v6: config.ipv6.is_some() }
    }
}

/// The interface that was chosen. What it has of a family that is not in use is taken along, if it leads to other links.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chosen {
    pub external: ExternalInterface,
    /// By what it was chosen.
    pub basis: Basis,
}

/// What comes out of the search, and what there was to say on the way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    pub chosen: Result<Chosen, IfaceError>,
    /// The families that were looked for.
    pub families: Families,
    remarks: Vec<Remark>,
}

/// A line for the log.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Remark {
    Info(String),
    Warning(String),
}

/// Why there is no external interface. Each message is one line and lists what the host has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IfaceError {
    /// Nothing of what was asked for fits; the operator has to change it.
    #[error(
        "Failed to find interface to use that matches the interfaces and/or regexes provided: {tried}; \
         this host has {present}"
    )]
    NoMatch {
        /// Each wish with the reason why not.
        tried: String,
        /// The interfaces of the host.
        present: String,
    },
    /// Nothing was asked for, and the host has no obvious interface (yet): it may get its default route
    /// or its address later.
    #[error("Failed to find any valid interface to use: {why}; -iface can name one; this host has {present}")]
    NoDefault {
        /// What is missing.
        why: String,
        /// The interfaces of the host.
        present: String,
    },
}

/// Chooses the external interface of a network of these families.
pub fn choose(facts: &Facts, wishes: &Wishes, families: Families) -> Outcome {
    let mut search = Search { facts, wishes, families, remarks: Vec::new() };
    let any = wishes.interfaces.is_empty() && wishes.patterns.is_empty() && wishes.can_reach.is_none();
    let chosen = if any {
        search.unasked().map_err(|why| IfaceError::NoDefault { why, present: present(facts) })
    } else {
        search.asked().map_err(|tried| IfaceError::NoMatch { tried, present: present(facts) })
    };
    Outcome { chosen, families, remarks: search.remarks }
}

/// Chooses the external interface of a network whose families are not known yet: by IPv4 or, if there is none, by IPv6.
pub fn choose_any(facts: &Facts, wishes: &Wishes) -> Outcome {
    let by_v4 = choose(facts, wishes, Families { v4: true, v6: false });
    if by_v4.chosen.is_ok() {
        return by_v4;
    }
    let by_v6 = choose(facts, wishes, Families { v4: false, v6: true });
    let mut addresses = facts.links.iter().flat_map(|link| &link.addresses);
    let has_v4 = addresses.any(|fact| fact.address.is_ipv4() && !fact.address.is_loopback());
    if by_v6.chosen.is_ok() || !has_v4 { by_v6 } else { by_v4 }
}

impl Outcome {
    /// Logs the choice in the words that operators search for, except what was logged for `before`.
    pub fn log(&self, wishes: &Wishes, before: Option<&Self>) {
        for message in self.messages(wishes, before) {
            match message {
                Remark::Info(line) => info!("{line}"),
                Remark::Warning(line) => warn!("{line}"),
            }
        }
    }

    fn messages(&self, wishes: &Wishes, before: Option<&Self>) -> Vec<Remark> {
        let is_same = |before: &&Self| match (&before.chosen, &self.chosen) {
            (Ok(before), Ok(now)) => before.external == now.external,
            _ => false,
        };
        let before = before.filter(is_same);
        let mut messages = if before.is_none() { self.remarks.clone() } else { Vec::new() };
        if let Ok(chosen) = &self.chosen {
            let logged = before.map_or(Families { v4: false, v6: false }, |before| before.families);
            let Families { v4, v6 } = self.families;
            let families = Families { v4: v4 && !logged.v4, v6: v6 && !logged.v6 };
            messages.extend(announcement(&chosen.external, wishes, families).into_iter().map(Remark::Info));
        }
        messages
    }
}

fn announcement(chosen: &ExternalInterface, wishes: &Wishes, families: Families) -> Vec<String> {
    let name = &chosen.name;
    let mut lines = Vec::new();
    if let Some(address) = chosen.v4.filter(|_| families.v4) {
        lines.push(format!("Using interface with name {name} and address {address}"));
        lines.push(match wishes.public_v4 {
            Some(public) => format!("Using {public} as external address"),
            None => format!("Defaulting external address to interface address ({address})"),
        });
    }
    if let Some(address) = chosen.v6.filter(|_| families.v6) {
        lines.push(format!("Using interface with name {name} and v6 address {address}"));
        lines.push(match wishes.public_v6 {
            Some(public) => format!("Using {public} as external v6 address"),
            None => format!("Defaulting external v6 address to interface address ({address})"),
        });
    }
    lines
}

/// The interfaces of the host with their addresses, cut short on a host that has very many.
fn present(facts: &Facts) -> String {
    /// Enough to find a misspelt name among, few enough for a line.
    const SHOWN: usize = 20;
    if facts.links.is_empty() {
        return "no interface".to_owned();
    }
    let mut words: Vec<String> = facts.links.iter().take(SHOWN).map(described).collect();
    if facts.links.len() > SHOWN {
        words.push(format!("{} more", facts.links.len() - SHOWN));
    }
    words.join(", ")
}

/// One interface with its addresses.
fn described(link: &LinkFact) -> String {
    let addresses: Vec<String> = link.addresses.iter().map(|fact| fact.address.to_string()).collect();
    if addresses.is_empty() {
        format!("{} (no address)", link.name)
    } else {
        format!("{} ({})", link.name, addresses.join(" "))
    }
}

#[cfg(test)]
mod tests;
