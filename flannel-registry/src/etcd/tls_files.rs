//! The certificate files that etcd is reached with.
//!
//! They are read each time a connection is made, and looked at before each call, so that whoever replaces them need not
//! tell anybody. What is wrong with them is said with the name of the file.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

/// The names of the files.
#[derive(Debug)]
pub(crate) struct Files {
    /// Whom to trust; without it, those whom the system trusts.
    ca: Option<PathBuf>,
    /// Who we are.
    pair: Option<Pair>,
}

/// What is in the files, each part as it was written and as it was understood.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Whom to trust, if a file says so.
    pub(crate) authorities: Option<Authorities>,
    /// Who we are, if files say so.
    pub(crate) identity: Option<Identity>,
}

#[derive(Debug)]
pub(crate) struct Authorities {
    pub(crate) pem: Vec<u8>,
    pub(crate) roots: RootCertStore,
}

pub(crate) struct Identity {
    pub(crate) certificate_pem: Vec<u8>,
    pub(crate) key_pem: Vec<u8>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    /// Shows no key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// One of a certificate and its key is given without the other.
#[derive(Debug)]
pub(crate) struct IncompleteKeyPair {
    /// The certificate's file, or nothing.
    pub(crate) cert_file: PathBuf,
    /// The key's file, or nothing.
    pub(crate) key_file: PathBuf,
}

#[derive(Debug)]
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
}

/// What tells a file that was written or replaced from what it was before: inode, size and time of the last change.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<(u64, u64, SystemTime)>>);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
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
    pub(crate) fn new(
        ca_file: &Option<PathBuf>,
        cert_file: &Option<PathBuf>,
        key_file: &Option<PathBuf>,
    ) -> Result<Self, IncompleteKeyPair> {
        let pair = match (cert_file.clone(), key_file.clone()) {
            (Some(certificate), Some(key)) => Some(Pair { certificate, key }),
            (None, None) => None,
            (cert_file, key_file) => {
                return Err(IncompleteKeyPair {
                    cert_file: cert_file.unwrap_or_default(),
                    key_file: key_file.unwrap_or_default(),
                });
            }
        };
        Ok(Self { ca: ca_file.clone(), pair })
    }

    /// Tells how the files are now.
    pub(crate) fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.modified().ok()?))
        };
        Stamp(self.paths().map(of).collect())
    }

    /// Reads the files and checks that a connection can be made with them.
    pub(crate) fn read(&self) -> Result<Contents, FileError> {
        Ok(Contents {
            authorities: self.ca.as_deref().map(authorities).transpose()?,
            identity: self.pair.as_ref().map(Pair::read).transpose()?,
        })
    }

    /// What to add to the reason why a handshake failed: which file has to do with it.
    pub(crate) fn hint(&self, reason: &str) -> Option<String> {
        if reason.contains("invalid peer certificate") {
            return Some(match &self.ca {
                Some(path) => format!("trusted are the authorities in {}", path.display()),
                None => "trusted are the authorities of this system, as no CA file is given".to_owned(),
            });
        }
        // With TLS 1.3 a client is ready before it is judged, and may hear no more than that the connection ended.
        let ended = ["received fatal alert", "broken pipe", "reset by peer", "connection closed"];
        ended.iter().any(|words| reason.contains(words)).then(|| match &self.pair {
            Some(pair) => {
                let expired = if self.has_expired() { ", which has expired" } else { "" };
                format!("etcd was shown the certificate in {}{expired}", pair.certificate.display())
            }
            None => "etcd was shown no client certificate, as none is given".to_owned(),
        })
    }

    /// Tells whether our own certificate has expired, as etcd would find if it trusts whom we trust. Only that explains
    /// a refusal; the clock of this host alone is no reason to do without etcd.
    fn has_expired(&self) -> bool {
        let Ok(Contents { authorities: Some(authorities), identity: Some(identity) }) = self.read() else {
            return false;
        };
        let (roots, provider) = (Arc::new(authorities.roots), Arc::new(default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        let (Ok(verifier), Some((own, above))) = (verifier, identity.chain.split_first()) else {
            return false;
        };
        let verified = verifier.verify_client_cert(own, above, UnixTime::now());
        matches!(
            verified,
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        )
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
        match CertifiedKey::from_der(chain.clone(), parsed.clone_key(), &default_provider()) {
            Ok(_) => Ok(Identity { certificate_pem: certificate, key_pem: key, chain, key: parsed }),
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
fn authorities(path: &Path) -> Result<Authorities, FileError> {
    let pem = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &pem)? {
        roots.add(certificate).map_err(|error| FileError::BadCertificate(path.to_owned(), error))?;
    }
    Ok(Authorities { pem, roots })
}

/// Reads all certificates of a file.
pub(crate) fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| FileError::NoCertificate(path.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))
}
