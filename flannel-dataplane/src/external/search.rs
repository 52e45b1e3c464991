//! The search for the external interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::{ExternalInterface, PublicAddrs};

use super::address::usable;
use super::{
    Basis, Chosen, DefaultRoute, Facts, Families, LinkFact, Pattern, Remark, Wishes, as_v4, as_v6, is_global,
    owner, preferred,
};

/// What is looked for, where, and what there is to say about it.
pub(crate) struct Search<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) wishes: &'a Wishes,
    pub(crate) families: Families,
    pub(crate) remarks: Vec<Remark>,
}

/// Addresses of an interface that are decided before one looks for the best.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Fixed {
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

impl From<IpAddr> for Fixed {
    fn from(address: IpAddr) -> Self {
        Self { v4: as_v4(address), v6: as_v6(address) }
    }
}

impl<'a> Search<'a> {
    /// The interface of the first wish that fits, or the list of what is wrong with each.
    pub(crate) fn asked(&mut self) -> Result<Chosen, String> {
        let Wishes { interfaces, patterns, can_reach, .. } = self.wishes;
        let mut tried = Vec::new();
        for item in interfaces {
            match self.by_item(item) {
                Ok(chosen) => return Ok(chosen),
                Err(why) => self.pass_over(&mut tried, "-iface=", "", item, &why),
            }
        }
        for pattern in patterns {
            match self.by_pattern(pattern) {
                Ok(chosen) => return Ok(chosen),
                Err(why) => self.pass_over(&mut tried, "-iface-regex=", "", pattern.as_str(), &why),
            }
        }
        if let Some(address) = can_reach {
            match self.by_way(*address) {
                Ok(chosen) => return Ok(chosen),
                Err(why) => {
                    let address = address.to_string();
                    self.pass_over(&mut tried, "-iface-can-reach=", "ifaceCanReach: ", &address, &why);
                }
            }
        }
        Err(tried.join("; "))
    }

    fn pass_over(&mut self, tried: &mut Vec<String>, flag: &str, word: &str, wish: &str, why: &str) {
        self.say(format!("Could not find valid interface matching {word}{wish}: {why}"));
        tried.push(format!("{flag}{wish}: {why}"));
    }

    /// The interface when nothing is asked for.
    pub(crate) fn unasked(&mut self) -> Result<Chosen, String> {
        let Wishes { public_v4, public_v6, .. } = self.wishes;
        let v4 = public_v4.filter(|_| self.families.v4).map(|ip| ("public-ip", IpAddr::V4(ip)));
        let v6 = public_v6.filter(|_| self.families.v6).map(|ip| ("public-ipv6", IpAddr::V6(ip)));
        if let Some((flag, address)) = v4.or(v6) {
            self.say(format!("Searching for interface using {address}"));
            if let Some(link) = owner(self.facts, address) {
                return self.with_addresses(link, address.into(), Basis::Address(address));
            }
            self.remarks.push(Remark::Warning(format!(
                "no interface has the address {address} of -{flag}; using the interface of the default route"
            )));
        }
        self.by_default_route()
    }

    /// The interface that one item of `-iface` means.
    fn by_item(&mut self, item: &str) -> Result<Chosen, String> {
        if item.is_empty() {
            return self.by_default_route();
        }
        let failed = |why: &str| format!("error looking up interface {item}: {why}");
        if let Ok(address) = item.parse() {
            self.say(format!("Searching for interface using {address}"));
            let link =
                owner(self.facts, address).ok_or_else(|| failed("No interface with given IP found"))?;
            return self.with_addresses(link, address.into(), Basis::Address(address));
        }
        let named = self.facts.links.iter().find(|link| link.name == item);
        let link = named.ok_or_else(|| failed("route ip+net: no such network interface"))?;
        self.with_addresses(link, Fixed::default(), Basis::Name)
    }

    /// The interface that a pattern fits: by its addresses or, if it fits none of any interface, by its name.
    fn by_pattern(&mut self, pattern: &Pattern) -> Result<Chosen, String> {
        if pattern.as_str().is_empty() {
            return self.by_default_route();
        }
        if let Some((link, fixed)) = matched(self.facts, pattern, self.families) {
            return self.with_addresses(link, fixed, Basis::Pattern);
        }
        let named = self.facts.links.iter().find(|link| pattern.fits(&link.name));
        let link = named.ok_or_else(|| {
            let have: Vec<String> = self.facts.links.iter().map(|link| self.candidates(link)).collect();
            let have = have.join(", ");
            format!(
                "could not match pattern {} to any of the available network interfaces ({have})",
                pattern.as_str()
            )
        })?;
        self.with_addresses(link, Fixed::default(), Basis::Name)
    }

    /// An interface with the addresses that a pattern was held against.
    fn candidates(&self, link: &LinkFact) -> String {
        let v4 = usable(link, as_v4).filter(|_| self.families.v4).map(|(_, address)| address.to_string());
        let v6 = usable(link, as_v6).filter(|_| self.families.v6).map(|(_, address)| address.to_string());
        format!("{}:[{}]", link.name, v4.chain(v6).collect::<Vec<_>>().join(" "))
    }

    /// The interface by which the kernel would send to an address.
    fn by_way(&mut self, address: IpAddr) -> Result<Chosen, String> {
        let way = self.facts.way.as_ref().ok_or("the kernel was not asked")?.clone()?;
        let link = self.facts.links.iter().find(|link| link.index == way.index);
        let link = link.ok_or_else(|| format!("the interface {} to {address} does not exist", way.index))?;
        // The source of an IPv6 packet may be an address that is good for a while only.
        let fixed = Fixed { v4: way.source.and_then(as_v4), v6: None };
        self.with_addresses(link, fixed, Basis::Way)
    }

    fn by_default_route(&mut self) -> Result<Chosen, String> {
        let link = self.default_link()?;
        self.with_addresses(link, Fixed::default(), Basis::DefaultRoute)
    }

    /// The interface of the default route; of both families' default routes, if both are in use.
    fn default_link(&mut self) -> Result<&'a LinkFact, String> {
        self.say("Determining IP address of default interface".to_owned());
        let (facts, families) = (self.facts, self.families);
        let v4 = families.v4.then(|| leading_out(facts, &facts.default_routes_v4)).transpose()?;
        let v6 = families.v6.then(|| leading_out(facts, &facts.default_routes_v6)).transpose()?;
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

    /// Completes `link` with its own addresses, of which `fixed` are already decided, and the published ones.
    fn with_addresses(&mut self, link: &LinkFact, fixed: Fixed, basis: Basis) -> Result<Chosen, String> {
        let missing =
            |family: &str| Err(format!("failed to find {family} address for interface {}", link.name));
        let Wishes { public_v4, public_v6, .. } = *self.wishes;
        // If an address that peers shall use is one of this host's, it is on the interface that they reach.
        let own_v6 = public_v6.filter(|_| self.families.v6 && fixed.v6.is_none()).map(IpAddr::V6);
        let own_v6 = own_v6.and_then(|address| owner(self.facts, address).map(|link| (address, link)));
        if let (Basis::Address(_), Some((_, of_v6))) = (basis, own_v6)
            && of_v6.index != link.index
        {
            return Err(format!(
                "v6 interface {} must be the same with v4 interface {}",
                of_v6.name, link.name
            ));
        }
        let own_v6 = own_v6.filter(|(_, of_v6)| of_v6.index == link.index).and_then(|(v6, _)| as_v6(v6));
        let v4 = fixed.v4.or_else(|| preferred(link, as_v4));
        let v6 = fixed.v6.or(own_v6).or_else(|| preferred(link, as_v6));
        match (v4, v6) {
            (None, _) if self.families.v4 => return missing("IPv4"),
            (_, None) if self.families.v6 => return missing("IPv6"),
            _ => {}
        }
        // An address for the link only does not lead to hosts on other links.
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
        Ok(Chosen { external: external.with_public(public), basis })
    }

    fn say(&mut self, line: String) {
        self.remarks.push(Remark::Info(line));
    }
}

/// The first interface of which an address of each family fits a pattern.
pub(crate) fn matched<'f>(
    facts: &'f Facts,
    pattern: &Pattern,
    families: Families,
) -> Option<(&'f LinkFact, Fixed)> {
    facts.links.iter().find_map(|link| {
        let v4 = usable(link, as_v4).map(|(_, address)| address);
        let v6 = usable(link, as_v6).map(|(_, address)| address);
        let fixed = Fixed {
            v4: v4.filter(|_| families.v4).find(|address| pattern.fits(&address.to_string())),
            v6: v6.filter(|_| families.v6).find(|address| pattern.fits(&address.to_string())),
        };
        let fits = fixed.v4.is_some() == families.v4 && fixed.v6.is_some() == families.v6;
        (fits && fixed != Fixed::default()).then_some((link, fixed))
    })
}

/// The interface of the first default route that has one.
fn leading_out<'f>(facts: &'f Facts, routes: &[DefaultRoute]) -> Result<&'f LinkFact, String> {
    let failed = |why: String| format!("failed to get default interface: {why}");
    if routes.is_empty() {
        return Err(failed("unable to find default route".to_owned()));
    }
    let index = routes.iter().find_map(|route| route.index);
    let index =
        index.ok_or_else(|| failed("found default route but could not determine interface".into()))?;
    let link = facts.links.iter().find(|link| link.index == index);
    link.ok_or_else(|| failed(format!("interface {index} of the default route does not exist")))
}
