//! TLS configs of connections.

use std::path::Path;
use std::sync::Arc;

use flannel_core::BoxError;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, crypto};

use super::connection::TlsConfig;
use crate::etcd::{FileError, TlsFiles, read_certificates};

/// The system's trusted authorities in Debian and Arch, Fedora, and Alpine.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Builds the TLS config for a host from the current files, so that certificates can be rotated at run time. Errors name
/// the file.
pub(super) fn tls_config(files: &TlsFiles, host: &str) -> Result<TlsConfig, BoxError> {
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
    Ok(TlsConfig { config: Arc::new(config), name })
}

fn system_roots() -> Result<RootCertStore, BoxError> {
    let path = SYSTEM_ROOTS.iter().map(Path::new).find(|file| file.is_file());
    let path = path.ok_or("this system has no file of trusted authorities; configure a CA file")?;
    let text = std::fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))?;
    let mut roots = RootCertStore::empty();
    // One certificate that rustls cannot parse must not disable the others.
    roots.add_parsable_certificates(read_certificates(path, &text)?);
    Ok(roots)
}
