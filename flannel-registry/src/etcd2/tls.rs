//! What a connection over TLS is made with.

use std::path::Path;
use std::sync::Arc;

use flannel_core::BoxError;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, crypto};

use super::connection::Tls;
use crate::etcd::{FileError, Files, certificates};

/// Where distributions keep the certificates that everybody trusts: Debian and Arch, Fedora, Alpine.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// What a connection to a host of this name needs. The files are read for each connection, so that a certificate can be
/// replaced while flannel runs.
///
/// # Errors
///
/// Names the file that cannot be used.
pub(super) fn tls(files: &Files, host: &str) -> Result<Tls, BoxError> {
    let name = ServerName::try_from(host.to_owned())?;
    let files = files.read()?;
    let roots = match files.authorities {
        Some(authorities) => authorities.roots,
        None => system_roots()?,
    };
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match files.identity {
        Some(own) => config.with_client_auth_cert(own.chain, own.key)?,
        None => config.with_no_client_auth(),
    };
    Ok(Tls { config: Arc::new(config), name })
}

fn system_roots() -> Result<RootCertStore, BoxError> {
    let path = SYSTEM_ROOTS.iter().map(Path::new).find(|file| file.is_file());
    let path = path.ok_or("this system has no certificates to trust; give a CA file")?;
    let text = std::fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))?;
    let mut roots = RootCertStore::empty();
    // A certificate that this library does not understand is not a reason to trust none.
    roots.add_parsable_certificates(certificates(path, &text)?);
    Ok(roots)
}
