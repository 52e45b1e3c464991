//! The options about etcd.

use std::path::PathBuf;

use super::{Settings, bad, endpoint, prefix};
use crate::flags::BadValue;

/// How to reach a network in etcd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EtcdOptions {
    /// The servers, at least one, as `scheme://host` or `scheme://host:port`.
    pub(crate) endpoints: Vec<String>,
    /// The key under which the network is stored, without a trailing slash: `<prefix>/config` is the config's key. Empty for
    /// the root.
    pub(crate) prefix: String,
    /// Certificates and key.
    pub(crate) files: EtcdFiles,
    /// Name and password of the user. The registry rejects one without the other.
    pub(crate) user: EtcdUser,
}

/// The files for TLS, in PEM.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct EtcdFiles {
    /// The CA certificates.
    pub(crate) authorities: Option<PathBuf>,
    /// The client certificate.
    pub(crate) certificate: Option<PathBuf>,
    /// The key of the client certificate.
    pub(crate) key: Option<PathBuf>,
}

/// An etcd user. Its `Debug` output omits the password.
#[derive(Clone, Default, Eq, PartialEq)]
pub(crate) struct EtcdUser {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// An etcd API. Each has its own store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EtcdApi {
    /// The one whose store has the network config.
    Auto,
    /// HTTP, as flannel up to v0.17 uses it.
    V2,
    /// gRPC, as flannel v0.18 and later use it.
    V3,
}

/// Checks the flags about etcd.
pub(super) fn etcd(settings: &Settings) -> Result<EtcdOptions, BadValue> {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let files = EtcdFiles {
        authorities: path(&settings.etcd_cafile),
        certificate: path(&settings.etcd_certfile),
        key: path(&settings.etcd_keyfile),
    };
    // With a client certificate, TLS is intended.
    let scheme = if files.certificate.is_some() { "https" } else { "http" };
    Ok(EtcdOptions {
        endpoints: endpoint::parse_list(&settings.etcd_endpoints, scheme)
            .map_err(|why| bad("etcd-endpoints", why))?,
        prefix: prefix::clean(&settings.etcd_prefix).map_err(|why| bad("etcd-prefix", why))?,
        files,
        user: EtcdUser { name: settings.etcd_username.clone(), password: settings.etcd_password.clone() },
    })
}

pub(super) fn etcd_api(text: &str) -> Result<EtcdApi, String> {
    match text {
        "auto" => Ok(EtcdApi::Auto),
        "v2" => Ok(EtcdApi::V2),
        "v3" => Ok(EtcdApi::V3),
        _ => Err(format!("{text:?} is not auto, v2 or v3")),
    }
}
