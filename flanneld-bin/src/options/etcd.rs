//! Where etcd is, and who to be for it.

use std::path::PathBuf;

use super::{Settings, bad, endpoint, prefix};
use crate::flags::BadValue;

/// How to reach a network in etcd.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct EtcdOptions {
    /// The servers, at least one, each as `scheme://host` or `scheme://host:port`.
    pub(crate) endpoints: Vec<String>,
    /// The key under which the network lives, without a trailing slash: `<prefix>/config` is the key of
    /// its configuration. The root is the empty text.
    pub(crate) prefix: String,
    /// Certificates and key, those that were given.
    pub(crate) files: EtcdFiles,
    /// Name and password of the user; either may be empty, which the registry judges.
    pub(crate) user: EtcdUser,
}

/// The files that etcd over TLS needs, in PEM form.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct EtcdFiles {
    /// The authorities to trust.
    pub(crate) authorities: Option<PathBuf>,
    /// The certificate to show.
    pub(crate) certificate: Option<PathBuf>,
    /// Its key.
    pub(crate) key: Option<PathBuf>,
}

/// Who to be for etcd. Its debug text holds no password.
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

/// An interface of etcd. Each has a store of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum EtcdApi {
    /// The one that the network config is found in.
    Auto,
    /// HTTP, as flannel up to v0.17 uses it.
    V2,
    /// gRPC, as flannel v0.18 and later use it.
    V3,
}

/// Checks what the flags say about etcd.
pub(super) fn etcd(settings: &Settings) -> Result<EtcdOptions, BadValue> {
    let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
    let files = EtcdFiles {
        authorities: path(&settings.etcd_cafile),
        certificate: path(&settings.etcd_certfile),
        key: path(&settings.etcd_keyfile),
    };
    // A client certificate is never meant for plain text.
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
        _ => Err(format!("{text:?} is none of auto, v2 and v3")),
    }
}
