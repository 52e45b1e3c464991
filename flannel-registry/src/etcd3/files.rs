//! The certificate files that etcd is reached with.
//!
//! They are read each time a connection is made, and looked at before each call, so that whoever replaces them need not
//! tell anybody. What is wrong with them is said with the name of the file.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::{Etcd3Options, Etcd3OptionsError};

/// The names of the files.
#[derive(Debug)]
pub(super) struct Files {
    /// Whom to trust; without it, those whom the system trusts.
    ca: Option<PathBuf>,
    /// Who we are.
    pair: Option<Pair>,
}

#[derive(Debug)]
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

/// What tells a file that was written or replaced from what it was before: inode, size and time of the last change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<(u64, u64, SystemTime)>>);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("cannot read {path}", path = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("{path} holds no certificate in PEM form", path = .0.display())]
    NoCertificate(PathBuf),
    #[error("{path} holds a certificate that cannot be used", path = .0.display())]
    BadCertificate(PathBuf, #[source] rustls::Error),
    #[error("{path} holds no private key in PEM form", path = .0.display())]
    NoKey(PathBuf),
    #[error("the key in {key} does not fit the certificate in {certificate}",
        key = .key.display(), certificate = .certificate.display())]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("the key in {path} cannot be used", path = .0.display())]
    BadKey(PathBuf, #[source] rustls::Error),
}

impl Files {
    /// Takes the names. Reads nothing.
    pub(super) fn new(options: &Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        let pair = match (options.cert_file.clone(), options.key_file.clone()) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            (cert_file, key_file) => {
                return Err(Etcd3OptionsError::HalfPair {
                    cert_file: cert_file.unwrap_or_default(),
                    key_file: key_file.unwrap_or_default(),
                });
            }
        };
        Ok(Self { ca: options.ca_file.clone(), pair })
    }

    /// Tells how the files are now.
    pub(super) fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.modified().ok()?))
        };
        Stamp(self.paths().map(of).collect())
    }

    /// Reads the files and checks that a connection can be made with them. The handshake may take `patience`.
    pub(super) fn read(&self, patience: Duration) -> Result<TlsOptions, FileError> {
        let mut options = TlsOptions::new().timeout(patience);
        options = match &self.ca {
            Some(path) => options.ca_certificate(Certificate::from_pem(authorities(path)?)),
            None => options.with_native_roots(),
        };
        if let Some(pair) = &self.pair {
            options = options.identity(pair.read()?);
        }
        Ok(options)
    }

    /// What to add to the reason why a handshake failed: which file has to do with it.
    pub(super) fn hint(&self, reason: &str) -> Option<String> {
        if reason.contains("invalid peer certificate") {
            return Some(match &self.ca {
                Some(path) => format!("trusted are the authorities in {}", path.display()),
                None => "trusted are the authorities of this system, as no CA file is given".to_owned(),
            });
        }
        // With TLS 1.3 a client is ready before it is judged, and may hear no more than that the connection ended.
        let ended = ["received fatal alert", "broken pipe", "reset by peer", "connection closed"];
        ended.iter().any(|words| reason.contains(words)).then(|| match &self.pair {
            Some(pair) => format!("etcd was shown the certificate in {}", pair.certificate.display()),
            None => "etcd was shown no client certificate, as none is given".to_owned(),
        })
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = self.pair.iter().flat_map(|pair| [pair.certificate.as_path(), pair.key.as_path()]);
        self.ca.as_deref().into_iter().chain(pair)
    }
}

impl Pair {
    fn read(&self) -> Result<Identity, FileError> {
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let chain = certificates(&self.certificate, &certificate)?;
        let parsed = PrivateKeyDer::from_pem_slice(&key).map_err(|_| FileError::NoKey(self.key.clone()))?;
        match CertifiedKey::from_der(chain, parsed, &default_provider()) {
            Ok(_) => Ok(Identity::from_pem(certificate, key)),
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(FileError::Mismatch { key: self.key.clone(), certificate: self.certificate.clone() })
            }
            Err(error @ rustls::Error::InvalidCertificate(_)) => {
                Err(FileError::BadCertificate(self.certificate.clone(), error))
            }
            Err(error) => Err(FileError::BadKey(self.key.clone(), error)),
        }
    }
}

/// Reads a file of authorities, each of which can be used.
fn authorities(path: &Path) -> Result<Vec<u8>, FileError> {
    let text = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &text)? {
        roots.add(certificate).map_err(|error| FileError::BadCertificate(path.to_owned(), error))?;
    }
    Ok(text)
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| FileError::NoCertificate(path.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))
}
