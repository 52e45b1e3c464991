//! Certificate files for connections to etcd.
//!
//! They are read for each new connection and checked for changes before each call, so replacing a file is enough to
//! rotate a certificate. Errors name the file.

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

/// The paths of the files.
#[derive(Debug)]
pub(crate) struct TlsFiles {
    /// Trusted authorities; `None` for those of the system.
    ca: Option<PathBuf>,
    /// The client certificate and its key.
    pair: Option<KeyPairPaths>,
}

/// The contents of the files, as PEM and parsed.
#[derive(Debug)]
pub(crate) struct TlsMaterial {
    /// Trusted authorities, if a CA file is given.
    pub(crate) authorities: Option<TrustedAuthorities>,
    /// The client certificate, if one is given.
    pub(crate) identity: Option<ClientIdentity>,
}

#[derive(Debug)]
pub(crate) struct TrustedAuthorities {
    pub(crate) pem: Vec<u8>,
    pub(crate) roots: RootCertStore,
}

pub(crate) struct ClientIdentity {
    pub(crate) certificate_pem: Vec<u8>,
    pub(crate) key_pem: Vec<u8>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for ClientIdentity {
    /// Omits the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientIdentity").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// A certificate without a key, or a key without a certificate.
#[derive(Debug)]
pub(crate) struct UnpairedKey {
    /// The certificate file; empty if missing.
    pub(crate) cert_file: PathBuf,
    /// The key file; empty if missing.
    pub(crate) key_file: PathBuf,
}

#[derive(Debug)]
struct KeyPairPaths {
    certificate: PathBuf,
    key: PathBuf,
}

/// Inode, size and modification time of each file, which change when a file is written or replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FileStamp(Vec<Option<(u64, u64, SystemTime)>>);

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {path}", path = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("{path} contains no PEM certificate", path = .0.display())]
    NoCertificate(PathBuf),
    #[error("{path} contains an unusable certificate", path = .0.display())]
    BadCertificate(PathBuf, #[source] rustls::Error),
    #[error("{path} contains no PEM private key", path = .0.display())]
    NoKey(PathBuf),
    #[error("the key in {key} does not match the certificate in {certificate}",
        key = .key.display(), certificate = .certificate.display())]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("unusable private key in {path}", path = .0.display())]
    BadKey(PathBuf, #[source] rustls::Error),
}

impl TlsFiles {
    /// Takes the paths without reading the files.
    pub(crate) fn new(
        ca_file: &Option<PathBuf>,
        cert_file: &Option<PathBuf>,
        key_file: &Option<PathBuf>,
    ) -> Result<Self, UnpairedKey> {
        let pair = match (cert_file.clone(), key_file.clone()) {
            (Some(certificate), Some(key)) => Some(KeyPairPaths { certificate, key }),
            (None, None) => None,
            (cert_file, key_file) => {
                return Err(UnpairedKey {
                    cert_file: cert_file.unwrap_or_default(),
                    key_file: key_file.unwrap_or_default(),
                });
            }
        };
        Ok(Self { ca: ca_file.clone(), pair })
    }

    /// Returns the current state of the files.
    pub(crate) fn stamp(&self) -> FileStamp {
        let stamp = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.size(), metadata.modified().ok()?))
        };
        FileStamp(self.paths().map(stamp).collect())
    }

    /// Reads and validates the files.
    pub(crate) fn read(&self) -> Result<TlsMaterial, FileError> {
        Ok(TlsMaterial {
            authorities: self.ca.as_deref().map(authorities).transpose()?,
            identity: self.pair.as_ref().map(KeyPairPaths::read).transpose()?,
        })
    }

    /// Returns a hint at the file to blame for a failed handshake, to append to the error.
    pub(crate) fn hint(&self, reason: &str) -> Option<String> {
        if reason.contains("invalid peer certificate") {
            return Some(match &self.ca {
                Some(path) => format!("trusted authorities: {}", path.display()),
                None => "trusted authorities: those of the system, because no CA file is given".to_owned(),
            });
        }
        // In TLS 1.3 the server verifies the client after the client finishes its handshake, so a rejected client may see
        // only a closed connection.
        let ended = ["received fatal alert", "broken pipe", "reset by peer", "connection closed"];
        ended.iter().any(|words| reason.contains(words)).then(|| match &self.pair {
            Some(pair) => {
                let expired = if self.has_expired() { " (expired)" } else { "" };
                format!("client certificate: {}{expired}", pair.certificate.display())
            }
            None => "no client certificate given".to_owned(),
        })
    }

    /// Reports whether the client certificate has expired, as etcd would judge with the same authorities. Only explains
    /// a failure: the clock of this host may be wrong, so an expired certificate is still presented.
    fn has_expired(&self) -> bool {
        let Ok(TlsMaterial { authorities: Some(authorities), identity: Some(identity) }) = self.read() else {
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

impl KeyPairPaths {
    fn read(&self) -> Result<ClientIdentity, FileError> {
        let (certificate, key) = (read(&self.certificate)?, read(&self.key)?);
        let chain = read_certificates(&self.certificate, &certificate)?;
        let parsed = PrivateKeyDer::from_pem_slice(&key).map_err(|_| FileError::NoKey(self.key.clone()))?;
        match CertifiedKey::from_der(chain.clone(), parsed.clone_key(), &default_provider()) {
            Ok(_) => Ok(ClientIdentity { certificate_pem: certificate, key_pem: key, chain, key: parsed }),
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

/// Reads trusted authorities.
fn authorities(path: &Path) -> Result<TrustedAuthorities, FileError> {
    let pem = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path, &pem)? {
        roots.add(certificate).map_err(|error| FileError::BadCertificate(path.to_owned(), error))?;
    }
    Ok(TrustedAuthorities { pem, roots })
}

/// Parses all certificates of a PEM file.
pub(crate) fn read_certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| FileError::NoCertificate(path.to_owned()))
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::Unreadable(path.to_owned(), error))
}
