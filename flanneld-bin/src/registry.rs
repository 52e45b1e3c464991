//! Opens the registry that the options name.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::{BoxError, Lease, LeaseManager as _, NetworkConfig, SubnetRegistry, chain};
use flannel_registry::{
    Etcd2Options, Etcd2Registry, Etcd3Options, Etcd3Registry, EtcdRegistry, RegistryLeaseManager,
};
use tokio::time::timeout;
use tracing::warn;

use crate::options::{EtcdApi, EtcdFiles, EtcdOptions};

/// Opens the registry. Connects on first use.
pub(crate) fn open(etcd: &EtcdOptions, api: EtcdApi) -> Result<Arc<dyn SubnetRegistry>, BoxError> {
    let is_plain = !etcd.endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    if is_plain && etcd.files != EtcdFiles::default() {
        warn!("etcd certificate files are ignored: no endpoint has the scheme https");
    }
    Ok(match api {
        EtcdApi::V2 => Arc::new(v2(etcd)?),
        EtcdApi::V3 => Arc::new(v3(etcd)?),
        EtcdApi::Auto => Arc::new(EtcdRegistry::new(v3(etcd)?, v2(etcd)?)),
    })
}

/// Opens the v3 store.
pub(crate) fn v3(etcd: &EtcdOptions) -> Result<Etcd3Registry, BoxError> {
    let mut options = Etcd3Options::default();
    options.endpoints.clone_from(&etcd.endpoints);
    options.prefix.clone_from(&etcd.prefix);
    options.ca_file.clone_from(&etcd.files.authorities);
    options.cert_file.clone_from(&etcd.files.certificate);
    options.key_file.clone_from(&etcd.files.key);
    options.username.clone_from(&etcd.user.name);
    options.password.clone_from(&etcd.user.password);
    Ok(Etcd3Registry::new(options)?)
}

/// Opens the v2 store.
pub(crate) fn v2(etcd: &EtcdOptions) -> Result<Etcd2Registry, BoxError> {
    let mut options = Etcd2Options::default();
    options.endpoints.clone_from(&etcd.endpoints);
    options.prefix.clone_from(&etcd.prefix);
    options.ca_file.clone_from(&etcd.files.authorities);
    options.cert_file.clone_from(&etcd.files.certificate);
    options.key_file.clone_from(&etcd.files.key);
    options.user = Some(etcd.user.name.clone()).filter(|name| !name.is_empty());
    options.password.clone_from(&etcd.user.password);
    Ok(Etcd2Registry::new(options)?)
}

/// The config and leases in a registry.
pub(crate) struct RegistrySnapshot {
    /// The registry's name.
    pub(crate) name: String,
    pub(crate) config: NetworkConfig,
    pub(crate) leases: Vec<Arc<Lease>>,
}

/// A reachable etcd responds at once, but a client that tries each member takes seconds for each that is down.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the config and leases.
pub(crate) async fn read(etcd: &EtcdOptions, api: EtcdApi) -> Result<RegistrySnapshot, String> {
    let registry = open(etcd, api).map_err(|error| chain(error.as_ref()))?;
    let reading = async {
        let manager = RegistryLeaseManager::new(Arc::clone(&registry));
        let config = manager.config().await.map_err(|error| chain(&error))?;
        let leases = registry.list().await.map_err(|error| chain(&error))?.leases;
        Ok(RegistrySnapshot { name: registry.describe(), config, leases })
    };
    timeout(TIMEOUT, reading)
        .await
        .unwrap_or_else(|_| Err(format!("etcd at {} does not respond", etcd.endpoints.join(", "))))
}
