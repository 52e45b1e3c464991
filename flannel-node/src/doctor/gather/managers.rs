//! The links that network managers manage, by their state files under `/run`.

use std::fs;
use std::path::Path;

use flannel_netlink::Link;

use crate::doctor::facts::{ManagedLink, Manager};

/// Returns the managed ones among the links.
pub(super) fn of<'l>(links: impl Iterator<Item = &'l Link>) -> Vec<ManagedLink> {
    let mut managed = Vec::new();
    for link in links {
        for (manager, directory, is_managed) in [
            // The files that sd_network(3) reads.
            (Manager::Networkd, "/run/systemd/netif/links", is_networkds as fn(&str) -> bool),
            (Manager::NetworkManager, "/run/NetworkManager/devices", is_network_managers),
        ] {
            let state = fs::read_to_string(Path::new(directory).join(link.index.to_string()));
            if state.is_ok_and(|state| is_managed(&state)) {
                managed.push(ManagedLink { manager, link: link.name.clone() });
            }
        }
    }
    managed
}

/// See SETUP STATES in networkctl(1): a link without a matching file is `unmanaged`, a new one `pending`.
fn is_networkds(state: &str) -> bool {
    let setup = state.lines().find_map(|line| line.strip_prefix("ADMIN_STATE="));
    matches!(setup, Some("configuring" | "configured" | "failed"))
}

fn is_network_managers(state: &str) -> bool {
    state.lines().any(|line| line.trim() == "managed=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_managed_if_its_manager_reports_it() {
        assert!(is_networkds("# private\nADMIN_STATE=configured\nOPER_STATE=routable\n"));
        assert!(!is_networkds("ADMIN_STATE=unmanaged\n") && !is_networkds("ADMIN_STATE=pending\n"));
        assert!(is_network_managers("[device]\nmanaged=true\nroute-metric-default-effective=100\n"));
        assert!(!is_network_managers("[device]\nmanaged=false\n") && !is_network_managers("[device]\n"));
    }
}
