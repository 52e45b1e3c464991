//! The backends of this program.

use flannel_backend_extension::{OpenAlloc, OpenExtension};
use flannel_backend_host_gw::OpenHostGw;
use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::OpenVxlan;
use flannel_netlink::Namespace;
use flannel_node::BackendRegistry;

/// Registers flannel's own backends, for this network namespace.
pub fn backends(namespace: &Namespace) -> BackendRegistry {
    BackendRegistry::new()
        .with(OpenVxlan::new(namespace.clone()))
        .with(OpenHostGw::new(namespace.clone()))
        .with(OpenUdp::new(namespace.clone()).with_vxlan_peers())
        .with(OpenExtension::new(namespace.clone()))
        .with(OpenAlloc)
}
