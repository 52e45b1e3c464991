//! Which backend a configuration asks for.

use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::{OpenHostGw, OpenVxlan};
use flannel_core::{Backend, BackendError, OpenBackend, OpenRequest};
use flannel_netlink::Namespace;

/// The backends that this daemon has.
#[derive(Debug)]
pub(crate) struct Backends {
    namespace: Namespace,
}

impl Backends {
    /// Takes the namespace in which the backends work.
    pub(crate) fn new(namespace: Namespace) -> Self {
        Self { namespace }
    }
}

impl OpenBackend for Backends {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        match request.config.backend.name.to_lowercase().as_str() {
            "vxlan" => OpenVxlan::new(self.namespace.clone()).open(request),
            "host-gw" => OpenHostGw::new(self.namespace.clone()).open(request),
            "udp" => OpenUdp::new(self.namespace.clone()).open(request),
            name => Err(BackendError::UnknownType(format!("{name} (this daemon has: vxlan, host-gw, udp)"))),
        }
    }
}
