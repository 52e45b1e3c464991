//! The external interface: selected by rules, then followed while the network runs.
//!
//! ```text
//!  InterfaceSelector ──choose──▶ InitialChoice ──chooser──▶ ChooseExternal of the network options
//!        │ facts: links, addresses, routes          │ families of the network are known
//!        ▼                                          ▼
//!     search: which interface           watch + track: Changed / Lost
//! ```

mod address;
mod facts;
mod home;
mod pattern;
mod search;
mod selector;
mod settle;
mod track;
mod watch;

use std::net::IpAddr;

use flannel_core::{BackendError, ExternalInterface, PublicAddrs};
use flannel_netlink::{Address, Namespace, Netlink};

pub use pattern::{InterfacePattern, PatternError};
pub use selector::{InitialChoice, InterfaceSelector, SelectError};

/// Reads an interface by name: its index, its MTU and its first global address of each family, which peers use too.
/// An address with an on-link prefix precedes a single-host one (/32, /128), which may float between hosts.
///
/// [`InterfaceSelector`] finds an interface by other rules.
///
/// # Errors
///
/// [`BackendError::Host`] if the interface doesn't exist; [`BackendError::Kernel`] if the kernel cannot be asked.
pub fn external_interface(namespace: &Namespace, name: &str) -> Result<ExternalInterface, BackendError> {
    let failed = |error: flannel_netlink::Error| BackendError::Kernel {
        object: format!("cannot read the interface {name}"),
        source: error.into(),
    };
    let mut netlink = Netlink::open_in(namespace).map_err(failed)?;
    let link = netlink.link(name).map_err(failed)?;
    let link = link.ok_or_else(|| BackendError::Host(format!("there is no interface {name}")))?;
    let mut addresses = netlink.addresses(link.index).map_err(failed)?;
    addresses.sort_by_key(Address::is_single_host);
    let global = || addresses.iter().filter(|address| address.scope == 0).map(|address| address.net.addr());
    let public = PublicAddrs {
        v4: global().find_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
        v6: global().find_map(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
    };
    Ok(ExternalInterface::new(link.name, link.index, link.mtu, public))
}
