//! A server that speaks TLS.

use std::path::PathBuf;
use std::process::Command;

/// The files of a server that serves its clients over TLS, and those that `etcdctl` shows to it. All are PEM.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// The authority that both sides trust.
    pub authority: PathBuf,
    /// The server's certificate, which names its address.
    pub certificate: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
    /// Lets in only clients that have a certificate of the authority. `etcdctl` shows this one, with its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl EtcdTls {
    /// Adds the server's arguments.
    pub(super) fn tell_server(&self, command: &mut Command) {
        command.arg("--cert-file").arg(&self.certificate).arg("--key-file").arg(&self.key);
        if self.client.is_some() {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&self.authority);
        }
    }

    /// Adds the variables that `etcdctl` reads.
    pub(super) fn tell_client(&self, command: &mut Command) {
        command.env("ETCDCTL_CACERT", &self.authority);
        if let Some((certificate, key)) = &self.client {
            command.env("ETCDCTL_CERT", certificate).env("ETCDCTL_KEY", key);
        }
    }
}
