//! The external interface, as a network needs to know it.

pub mod facts;
mod follow;
pub mod select;
pub mod selector;
mod settle;

use std::net::IpAddr;

use flannel_core::{BackendError, ExternalInterface, PublicAddrs};
use flannel_netlink::{Namespace, Netlink};

pub use follow::{Look, follow_external};

/// Reads what a network needs to know of an interface: its index, MTU and addresses. Its addresses are those that
/// peers use, unless the caller says otherwise afterwards.
///
/// # Errors
///
/// [`BackendError::Host`] if there is no such interface; [`BackendError::Kernel`] if the kernel does not answer.
pub fn external_interface(namespace: &Namespace, name: &str) -> Result<ExternalInterface, BackendError> {
    let failed = |error: flannel_netlink::Error| BackendError::Kernel {
        object: format!("cannot read the interface {name}"),
        source: error.into(),
    };
    let mut netlink = Netlink::open_in(namespace).map_err(failed)?;
    let link = netlink.link(name).map_err(failed)?;
    let link = link.ok_or_else(|| BackendError::Host(format!("there is no interface {name}")))?;
    let addresses = netlink.addresses(link.index).map_err(failed)?;
    let usable = || addresses.iter().filter(|address| address.scope == 0).map(|address| address.net.addr());
    let public = PublicAddrs {
        v4: usable().find_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None }),
        v6: usable().find_map(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None }),
    };
    Ok(ExternalInterface::new(link.name, link.index, link.mtu, public))
}
