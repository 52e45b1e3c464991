//! Selection of the external interface: once at the start, so that an impossible rule is reported at once, and again
//! when the families of the network are known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use flannel_core::{
    BackendError, ChooseExternal, ExternalChoice, ExternalInterface, ExternalUpdate, IpFamilies, PublicAddrs,
    chain,
};
use flannel_netlink::Namespace;
use futures::stream::BoxStream;
use tracing::warn;

use super::facts::{FactsRequest, HostFacts};
use super::home::HomeAddresses;
use super::pattern::InterfacePattern;
use super::search::{Criteria, SearchOutcome, SelectedBy, Selection, search, search_any};
use super::settle::{MoveDamping, SETTLE_TIME};
use super::track::track;
use super::watch::{Observation, watch};

/// Selects the external interface of a host.
///
/// Without rules it selects the interface of the default route. With rules, the first that yields an interface decides,
/// in this order: [names and addresses](Self::with_interface), [patterns](Self::with_pattern),
/// [reachability](Self::with_reachable). Log lines and errors are those of `flanneld`, and name rules by its flags.
///
/// ```no_run
/// use flannel_dataplane::{InterfacePattern, InterfaceSelector, Namespace};
///
/// let here = Namespace::current()?;
/// let by_default_route = InterfaceSelector::new().select(&here)?;
/// let by_name = InterfaceSelector::new().with_interface("eth1").select(&here)?;
/// let by_address = InterfaceSelector::new().with_interface("10.0.0.7").select(&here)?;
/// let by_pattern = InterfaceSelector::new().with_pattern(InterfacePattern::new("^10[.]")?).select(&here)?;
/// let by_route = InterfaceSelector::new().with_reachable("192.0.2.1".parse()?).select(&here)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A network that follows the interface, whatever its address families are:
///
/// ```no_run
/// use flannel_core::NetworkOptions;
/// use flannel_dataplane::{InterfaceSelector, Namespace};
/// # fn manager() -> flannel_core::StaticLeaseManager { unimplemented!() }
/// # struct Open;
/// # impl flannel_core::OpenBackend for Open {
/// #     fn open(&self, _: flannel_core::OpenRequest<'_>)
/// #         -> Result<Box<dyn flannel_core::Backend>, flannel_core::BackendError> { unimplemented!() }
/// # }
/// # let (manager, backend) = (manager(), Open);
///
/// let choice = InterfaceSelector::new().with_interface("eth1").choose(&Namespace::current()?)?;
/// let mut options = NetworkOptions::new(manager, backend, choice.external.clone());
/// options.choose_external = Some(choice.into_chooser());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct InterfaceSelector(Criteria);

impl InterfaceSelector {
    /// Selects the interface of the default route.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a name or an address of an interface. An empty one stands for the interface of the default route.
    #[must_use]
    pub fn with_interface(mut self, name_or_address: impl Into<String>) -> Self {
        self.0.interfaces.push(name_or_address.into());
        self
    }

    /// Adds a pattern, which is matched against the addresses of all interfaces and then against their names. An empty
    /// one stands for the interface of the default route.
    #[must_use]
    pub fn with_pattern(mut self, pattern: InterfacePattern) -> Self {
        self.0.patterns.push(pattern);
        self
    }

    /// Selects the interface of the kernel's route to an address.
    #[must_use]
    pub fn with_reachable(mut self, address: IpAddr) -> Self {
        self.0.can_reach = Some(address);
        self
    }

    /// Sets the IPv4 address that peers use. Without other rules, selects the interface that has it.
    #[must_use]
    pub fn with_public_v4(mut self, address: Ipv4Addr) -> Self {
        self.0.public_v4 = Some(address);
        self
    }

    /// Sets the IPv6 address that peers use. Without other rules, selects the interface that has it.
    #[must_use]
    pub fn with_public_v6(mut self, address: Ipv6Addr) -> Self {
        self.0.public_v6 = Some(address);
        self
    }

    /// Sets the addresses of the lease that this host held before. An interface that is selected by name or default route
    /// keeps them while it has them, and the network returns to them.
    #[must_use]
    pub fn with_previous(mut self, addresses: PublicAddrs) -> Self {
        self.0.previous = addresses;
        self
    }

    /// Selects an interface with an IPv4 address or, failing that, with an IPv6 address. Logs nothing.
    ///
    /// # Errors
    ///
    /// [`SelectError`] if no interface matches.
    pub fn select(&self, namespace: &Namespace) -> Result<ExternalInterface, SelectError> {
        let outcome = search_any(&self.read(namespace)?, &self.0);
        Ok(selection(outcome)?.external)
    }

    /// Selects an interface with an address of each family. Logs nothing.
    ///
    /// # Errors
    ///
    /// [`SelectError`] if no interface matches.
    pub fn select_for(
        &self,
        namespace: &Namespace,
        families: IpFamilies,
    ) -> Result<ExternalInterface, SelectError> {
        let outcome = search(&self.read(namespace)?, &self.0, families);
        Ok(selection(outcome)?.external)
    }

    /// Selects an interface like [`select`](Self::select), logs the choice, and returns it for a network that reconsiders
    /// it once its address families are known.
    ///
    /// # Errors
    ///
    /// [`SelectError`] if no interface matches.
    pub fn choose(&self, namespace: &Namespace) -> Result<InitialChoice, SelectError> {
        let facts = self.read(namespace)?;
        let outcome = search_any(&facts, &self.0);
        outcome.log(&self.0, None);
        let external = selection(outcome.clone())?.external;
        Ok(InitialChoice { external, namespace: namespace.clone(), selector: self.clone(), facts, outcome })
    }

    fn read(&self, namespace: &Namespace) -> Result<HostFacts, SelectError> {
        let request = FactsRequest { default_routes: true, lookup: self.0.can_reach };
        HostFacts::read(namespace, request).map_err(SelectError::Kernel)
    }
}

fn selection(outcome: SearchOutcome) -> Result<Selection, SelectError> {
    outcome.selection.map_err(|error| SelectError::NotFound(error.to_string()))
}

/// Why no external interface was selected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// No interface satisfies the rules. The text names the reason for each rule and lists the interfaces of the host.
    #[error("{0}")]
    NotFound(String),
    /// The kernel cannot be asked.
    #[error("Failed to read the interfaces")]
    Kernel(#[source] flannel_netlink::Error),
}

/// The interface that was selected at the start.
#[derive(Clone, Debug)]
pub struct InitialChoice {
    /// The interface.
    pub external: ExternalInterface,
    namespace: Namespace,
    selector: InterfaceSelector,
    facts: HostFacts,
    outcome: SearchOutcome,
}

impl InitialChoice {
    /// Returns the function that a network calls when its address families are known. It selects the interface again,
    /// and the network then follows the changes of that interface.
    #[must_use]
    pub fn into_chooser(self) -> ChooseExternal {
        Box::new(move |_, families| self.choose_again(families).map_err(|error| chain(error.as_ref())))
    }

    fn choose_again(self, families: IpFamilies) -> Result<ExternalChoice, Box<dyn std::error::Error>> {
        let selection = self.select_again(families)?;
        let external = selection.external.clone();
        let home = self.home(&selection);
        let changes = changes(self.namespace, self.selector.0, families, selection, home)?;
        Ok(ExternalChoice::new(external).with_changes(changes))
    }

    /// Returns the addresses to return to. A pattern, an address or a route decides alone.
    fn home(&self, selection: &Selection) -> PublicAddrs {
        let external = &selection.external;
        let now = PublicAddrs { v4: external.v4, v6: external.v6 };
        match selection.selected_by {
            SelectedBy::Name | SelectedBy::DefaultRoute => {
                let (previous, first) = (self.selector.0.previous_own(), &self.external);
                PublicAddrs {
                    v4: previous.v4.or(first.v4).or(now.v4),
                    v6: previous.v6.or(first.v6).or(now.v6),
                }
            }
            SelectedBy::Address(_) | SelectedBy::Pattern | SelectedBy::Reachability => now,
        }
    }

    /// Selects an interface on the host as it is now or, failing that, as it was at the start: the host may have lost an
    /// address for a moment.
    fn select_again(&self, families: IpFamilies) -> Result<Selection, SelectError> {
        let criteria = &self.selector.0;
        let now = search(&self.selector.read(&self.namespace)?, criteria, families);
        if let (Err(error), Ok(before)) = (&now.selection, search(&self.facts, criteria, families).selection)
        {
            warn!("{error}; continuing with {}", before.external.name);
            return Ok(before);
        }
        now.log(criteria, Some(&self.outcome));
        selection(now)
    }
}

/// Returns the changes of a selected interface.
fn changes(
    namespace: Namespace,
    criteria: Criteria,
    families: IpFamilies,
    selection: Selection,
    home: PublicAddrs,
) -> Result<BoxStream<'static, ExternalUpdate>, BackendError> {
    let Selection { external, selected_by } = selection;
    let request = FactsRequest {
        default_routes: selected_by == SelectedBy::DefaultRoute,
        lookup: criteria.can_reach.filter(|_| selected_by == SelectedBy::Reachability),
    };
    let mut damping = MoveDamping::default();
    let mut home = HomeAddresses::new(home);
    let observed = namespace.clone();
    watch(namespace, external, move |known| match HostFacts::read(&observed, request) {
        Ok(facts) => {
            let now = Instant::now();
            let home = home.current(&facts, known, now);
            let state = track(&facts, &criteria, families, selected_by, known, home);
            damping.judge(state, known, now)
        }
        Err(error) => {
            let seconds = SETTLE_TIME.as_secs();
            warn!("cannot read the interfaces: {}; trying again in {seconds}s", chain(&error));
            Observation::Unsettled(SETTLE_TIME)
        }
    })
}
