//! The alloc backend leases a subnet and carries no traffic.

use async_trait::async_trait;
use flannel_core::{
    Backend, BackendAttrs, BackendDescriptor, BackendError, BackendType, ExternalInterface, Lease,
    OpenBackend, OpenRequest, SyncReport, SyncRequest,
};

/// Opens the alloc backend, for hosts whose traffic another program carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenAlloc;

impl BackendDescriptor for OpenAlloc {
    fn name(&self) -> &'static str {
        "alloc"
    }
}

impl OpenBackend for OpenAlloc {
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Backend>, BackendError> {
        request.config.backend.check_type("alloc")?;
        Ok(Box::new(Alloc { mtu: request.external.mtu }))
    }
}

#[derive(Debug)]
struct Alloc {
    mtu: u32,
}

#[async_trait]
impl Backend for Alloc {
    fn attrs(&self) -> BackendAttrs {
        BackendAttrs::new(BackendType::UNNAMED)
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }

    fn update_interface(&mut self, external: &ExternalInterface) -> Result<(), BackendError> {
        self.mtu = external.mtu;
        Ok(())
    }

    fn configure(&mut self, _own: &Lease) -> Result<(), BackendError> {
        Ok(())
    }

    fn sync(&mut self, _request: SyncRequest<'_>) -> SyncReport {
        SyncReport::default()
    }

    async fn wait_for_drift(&mut self) -> String {
        std::future::pending().await
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        Ok(())
    }
}
