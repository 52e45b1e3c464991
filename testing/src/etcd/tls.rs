//! TLS between the server and its clients.

use std::path::PathBuf;
use std::process::Command;

/// The PEM files of a server that serves its clients over TLS, and those that `etcdctl` uses.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The authority that both sides trust.
    pub authority: PathBuf,
    /// The server's certificate, which contains its address.
    pub certificate: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
    /// Requires client certificates of the authority. `etcdctl` uses this one, with its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl EtcdTls {
    /// Adds the server's arguments.
    pub(super) fn add_server_arguments(&self, command: &mut Command) {
        command.arg("--cert-file").arg(&self.certificate).arg("--key-file").arg(&self.key);
        if self.client.is_some() {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&self.authority);
        }
    }

    /// Adds the variables that `etcdctl` reads.
    pub(super) fn add_client_variables(&self, command: &mut Command) {
        command.env("ETCDCTL_CACERT", &self.authority);
        if let Some((certificate, key)) = &self.client {
            command.env("ETCDCTL_CERT", certificate).env("ETCDCTL_KEY", key);
        }
    }
}
