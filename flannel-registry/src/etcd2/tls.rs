//! Who is trusted, and who this host is, where an endpoint is `https`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use flannel_core::BoxError;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::connection::Tls;

/// Where distributions keep the certificates that everybody trusts: Debian and Arch, Fedora, Alpine.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The files that TLS needs. They are read for each connection, so that a certificate can be replaced while flannel
/// runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Credentials {
    pub(super) ca_file: Option<PathBuf>,
    /// The certificate and its key.
    pub(super) client: Option<(PathBuf, PathBuf)>,
}

impl Credentials {
    /// What a connection to a host of this name needs.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be used.
    pub(super) fn tls(&self, host: &str) -> Result<Tls, BoxError> {
        let name = ServerName::try_from(host.to_owned())?;
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let config = match &self.client {
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, &error))?;
                config.with_client_auth_cert(chain, key).map_err(|error| unusable(certificate, &error))?
            }
            None => config.with_no_client_auth(),
        };
        Ok(Tls { config: Arc::new(config), name })
    }

    fn roots(&self) -> Result<RootCertStore, BoxError> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.ca_file {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| unusable(file, &error))?;
            }
            return Ok(roots);
        }
        let system = SYSTEM_ROOTS.iter().map(Path::new).find(|file| file.is_file());
        let system = system.ok_or("this system has no certificates to trust; give a CA file")?;
        // A certificate that this library does not understand is not a reason to trust none.
        roots.add_parsable_certificates(certificates(system)?);
        Ok(roots)
    }
}

/// Reads all certificates of a file in PEM form.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, BoxError> {
    let certificates = CertificateDer::pem_file_iter(file).map_err(|error| unusable(file, &error))?;
    let certificates: Result<Vec<_>, _> = certificates.collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(unusable(file, &"it holds no certificate")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(file, &error)),
    }
}

fn unusable(file: &Path, reason: &dyn std::fmt::Display) -> BoxError {
    format!("{}: {reason}", file.display()).into()
}
