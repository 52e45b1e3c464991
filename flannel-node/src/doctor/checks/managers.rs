//! Network managers that manage flannel's devices.

use crate::doctor::facts::{Facts, Manager};
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const NETWORKD: Fault = Fault::warning(
    "networkd-manages-device",
    "when it restarts or its files change, systemd-networkd removes addresses and routes that it did not \
     create",
);
pub(super) const NETWORK_MANAGER: Fault = Fault::warning(
    "network-manager-manages-device",
    "when a connection changes, NetworkManager removes addresses and routes that it did not create, or sets \
     the device down",
);

pub(in crate::doctor) fn managed(facts: &Facts) -> Vec<Finding> {
    let found = |managed: &crate::doctor::facts::ManagedLink| {
        let link = &managed.link;
        match managed.manager {
            Manager::Networkd => NETWORKD.found(format!("systemd-networkd manages {link}"), networkd()),
            Manager::NetworkManager => {
                NETWORK_MANAGER.found(format!("NetworkManager manages {link}"), network_manager())
            }
        }
    };
    facts.managed.iter().map(found).collect()
}

/// The first matching file applies (systemd.network(5)), so its name starts with a small number.
fn networkd() -> Cure {
    const FILE: &str = "/etc/systemd/network/10-flannel.network";
    Cure::run([
        format!(
            "mkdir -p /etc/systemd/network && printf '[Match]\\nName=flannel*\\n\\n[Link]\\nUnmanaged=yes\\n' > {FILE}"
        ),
        "networkctl reload".to_owned(),
    ])
}

/// See `unmanaged-devices` in NetworkManager.conf(5).
fn network_manager() -> Cure {
    const FILE: &str = "/etc/NetworkManager/conf.d/10-flannel.conf";
    Cure::run([
        format!(
            "mkdir -p /etc/NetworkManager/conf.d && printf \
             '[keyfile]\\nunmanaged-devices+=interface-name:flannel*\\n' > {FILE}"
        ),
        "nmcli general reload".to_owned(),
    ])
}
