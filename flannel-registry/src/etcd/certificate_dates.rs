//! From when until when the certificates in a file are good.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flannel_core::BoxError;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::{FileError, certificates};

/// A certificate in a file, and the time in which it is good.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CertificateDates {
    /// The file.
    pub path: PathBuf,
    /// Whose it is (RFC 4514), such as `CN=etcd-1`.
    pub subject: String,
    /// It is good from then on.
    pub not_before: SystemTime,
    /// It is good until then.
    pub not_after: SystemTime,
}

impl CertificateDates {
    /// A certificate of this subject, in this file, that is good from one time until another.
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

/// Reads the dates of all certificates of a file in PEM form.
///
/// # Errors
///
/// Names the file, and says what is wrong with it.
pub fn certificate_dates(path: &Path) -> Result<Vec<CertificateDates>, BoxError> {
    let text = fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))?;
    let dates = |der: rustls::pki_types::CertificateDer<'_>| {
        let certificate = Certificate::from_der(&der).map_err(|error| {
            format!("{} holds a certificate that cannot be read: {error}", path.display())
        })?;
        let certificate = certificate.tbs_certificate();
        let time = |since_1970: Duration| SystemTime::UNIX_EPOCH + since_1970;
        Ok(CertificateDates {
            path: path.to_owned(),
            subject: certificate.subject().to_string(),
            not_before: time(certificate.validity().not_before.to_unix_duration()),
            not_after: time(certificate.validity().not_after.to_unix_duration()),
        })
    };
    certificates(path, &text)?.into_iter().map(dates).collect()
}
