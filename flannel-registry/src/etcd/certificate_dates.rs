//! Validity of the certificates in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flannel_core::BoxError;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::tls_files::{FileError, read_certificates};

/// The validity of one certificate in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CertificateDates {
    /// The file.
    pub path: PathBuf,
    /// The subject (RFC 4514), such as `CN=etcd-1`.
    pub subject: String,
    /// Start of the validity period.
    pub not_before: SystemTime,
    /// End of the validity period.
    pub not_after: SystemTime,
}

impl CertificateDates {
    /// Describes a certificate in a file.
    #[must_use]
    pub fn new(
        path: impl Into<PathBuf>,
        subject: impl Into<String>,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Self {
        Self { path: path.into(), subject: subject.into(), not_before, not_after }
    }
}

/// Reads the validity of all certificates in a PEM file.
///
/// # Errors
///
/// Names the file and the defect if the file cannot be read or holds no valid certificate.
pub fn certificate_dates(path: &Path) -> Result<Vec<CertificateDates>, BoxError> {
    let text = fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))?;
    let dates = |der: rustls::pki_types::CertificateDer<'_>| {
        let certificate = Certificate::from_der(&der)
            .map_err(|error| format!("{} contains an invalid certificate: {error}", path.display()))?;
        let certificate = certificate.tbs_certificate();
        let time = |since_1970: Duration| SystemTime::UNIX_EPOCH + since_1970;
        Ok(CertificateDates {
            path: path.to_owned(),
            subject: certificate.subject().to_string(),
            not_before: time(certificate.validity().not_before.to_unix_duration()),
            not_after: time(certificate.validity().not_after.to_unix_duration()),
        })
    };
    read_certificates(path, &text)?.into_iter().map(dates).collect()
}
