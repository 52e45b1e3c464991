//! Where the leases are, as the options say.

use std::sync::Arc;

use flannel_core::{BoxError, SubnetRegistry};
use flannel_registry::{Etcd2Options, Etcd2Registry, Etcd3Options, Etcd3Registry, EtcdRegistry};
use tracing::warn;

use crate::options::{EtcdApi, EtcdFiles, Options};

/// Opens the registry. Connects to nothing yet.
pub(crate) fn open(options: &Options) -> Result<Arc<dyn SubnetRegistry>, BoxError> {
    let is_plain = !options.etcd_endpoints.iter().any(|endpoint| endpoint.starts_with("https://"));
    if is_plain && options.etcd_files != EtcdFiles::default() {
        warn!("certificate files for etcd are not used: no endpoint begins with https://");
    }
    Ok(match options.etcd_api {
        EtcdApi::V2 => Arc::new(v2(options)?),
        EtcdApi::V3 => Arc::new(v3(options)?),
        EtcdApi::Auto => Arc::new(EtcdRegistry::new(v3(options)?, v2(options)?)),
    })
}

fn v3(options: &Options) -> Result<Etcd3Registry, BoxError> {
    let mut etcd = Etcd3Options::default();
    etcd.endpoints.clone_from(&options.etcd_endpoints);
    etcd.prefix.clone_from(&options.etcd_prefix);
    etcd.ca_file.clone_from(&options.etcd_files.authorities);
    etcd.cert_file.clone_from(&options.etcd_files.certificate);
    etcd.key_file.clone_from(&options.etcd_files.key);
    etcd.username.clone_from(&options.etcd_user.name);
    etcd.password.clone_from(&options.etcd_user.password);
    Ok(Etcd3Registry::new(etcd)?)
}

fn v2(options: &Options) -> Result<Etcd2Registry, BoxError> {
    let mut etcd = Etcd2Options::default();
    etcd.endpoints.clone_from(&options.etcd_endpoints);
    etcd.prefix.clone_from(&options.etcd_prefix);
    etcd.ca_file.clone_from(&options.etcd_files.authorities);
    etcd.cert_file.clone_from(&options.etcd_files.certificate);
    etcd.key_file.clone_from(&options.etcd_files.key);
    etcd.user = Some(options.etcd_user.name.clone()).filter(|name| !name.is_empty());
    etcd.password.clone_from(&options.etcd_user.password);
    Ok(Etcd2Registry::new(etcd)?)
}
