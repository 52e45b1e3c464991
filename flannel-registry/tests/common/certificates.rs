//! Certificates for one test, in temporary files.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_RSA_SHA256, SanType, date_time_ymd,
};

/// A 2048-bit RSA key as written by `cfssl`, for tests only.
const RSA_PKCS1: &str = include_str!("rsa-pkcs1.pem");
/// The same key as PKCS#8.
const RSA_PKCS8: &str = include_str!("rsa-pkcs8.pem");

/// CA, certificate and key files, one of them unusable after [`Certificates::spoil`], with the file and reason that the
/// error must name.
pub(crate) const SPOILT: [([&str; 3], [&str; 2]); 7] = [
    (["absent.pem", "client.pem", "client-key.pem"], ["absent.pem", "No such file"]),
    (["garbage.pem", "client.pem", "client-key.pem"], ["garbage.pem", "contains no PEM certificate"]),
    (["half.pem", "client.pem", "client-key.pem"], ["half.pem", "contains no PEM certificate"]),
    (["ca.pem", "garbage.pem", "client-key.pem"], ["garbage.pem", "contains no PEM certificate"]),
    (["ca.pem", "client.pem", "client.pem"], ["client.pem", "contains no PEM private key"]),
    (["ca.pem", "client.pem", "absent-key.pem"], ["absent-key.pem", "No such file"]),
    (["ca.pem", "client.pem", "other-key.pem"], ["other-key.pem does not match", "client.pem"]),
];

/// An authority and the directory of its certificates.
pub(crate) struct Certificates {
    directory: PathBuf,
    authority: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// Creates an authority in `ca.pem`.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("flannel-certificates-{}-{count}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, format!("authority {count}"));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let new = Self { directory, authority: Issuer::new(params, key) };
        new.write("ca.pem", &certificate.pem());
        new
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Replaces a file atomically, as programs that rotate certificates do.
    pub(crate) fn write(&self, file: &str, text: &str) -> PathBuf {
        let (path, new) = (self.path(file), self.path(&format!("{file}.new")));
        fs::write(&new, text).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    /// Creates `NAME.pem` and `NAME-key.pem` for a server at an address.
    pub(crate) fn server(&self, name: &str, address: Ipv4Addr) {
        self.issue(name, &KeyPair::generate().unwrap(), |params| {
            params.subject_alt_names = vec![SanType::IpAddress(address.into())];
        });
    }

    /// Creates `NAME.pem` and `NAME-key.pem` for a server at an address, already expired.
    pub(crate) fn expired_server(&self, name: &str, address: Ipv4Addr) {
        self.issue(name, &KeyPair::generate().unwrap(), |params| {
            params.subject_alt_names = vec![SanType::IpAddress(address.into())];
            params.not_after = date_time_ymd(2020, 1, 1);
        });
    }

    /// Creates `NAME.pem` and `NAME-key.pem` for a client, already expired.
    pub(crate) fn expired_client(&self, name: &str) {
        self.issue(name, &KeyPair::generate().unwrap(), |params| {
            params.not_after = date_time_ymd(2020, 1, 1);
        });
    }

    /// Creates `rsa.pem` for a client with the RSA key, and the key in both forms.
    pub(crate) fn rsa_client(&self) -> [PathBuf; 2] {
        let rsa = KeyPair::from_pkcs8_pem_and_sign_algo(RSA_PKCS8, &PKCS_RSA_SHA256).unwrap();
        self.issue("rsa", &rsa, |_| {});
        [self.write("rsa-pkcs8.pem", RSA_PKCS8), self.write("rsa-pkcs1.pem", RSA_PKCS1)]
    }

    /// Creates the files of [`SPOILT`], in addition to those of `client`.
    pub(crate) fn spoil(&self) {
        self.write("garbage.pem", "no certificate at all\n");
        self.write("half.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n");
        self.client("other");
    }

    /// Creates `NAME.pem` and `NAME-key.pem` for a client.
    pub(crate) fn client(&self, name: &str) {
        self.issue(name, &KeyPair::generate().unwrap(), |_| {});
    }

    /// Creates `NAME.pem` and `NAME-key.pem` of a key.
    pub(crate) fn issue(&self, name: &str, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let certificate = params.signed_by(key, &self.authority).unwrap();
        self.write(&format!("{name}-key.pem"), &key.serialize_pem());
        self.write(&format!("{name}.pem"), &certificate.pem());
    }

    /// Reads one of the files.
    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(Path::join(&self.directory, file)).unwrap()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
