//! Certificates for the etcd on the switch and for its clients.

use std::fs;
use std::path::PathBuf;

use flannel_testing::{Directory, EtcdOptions, EtcdTls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::cluster::SWITCH;

/// A temporary directory with certificates.
pub(crate) struct Certificates(Directory);

impl Certificates {
    /// Creates a CA and a certificate per name for etcd's address; one certificate has expired.
    pub(crate) fn new() -> Self {
        let certificates = Self(Directory::new().unwrap());
        certificates.issue();
        certificates
    }

    /// Replaces all certificates by those of a new CA.
    pub(crate) fn issue(&self) {
        let key = KeyPair::generate().unwrap();
        self.write("ca.pem", &self.authority_params().self_signed(&key).unwrap().pem());
        self.write("ca-key.pem", &key.serialize_pem());
        for name in ["server", "client"] {
            self.issue_one(name, |_| {});
        }
        self.issue_one("late", |params| params.not_after = date_time_ymd(2020, 1, 1));
    }

    /// Creates a certificate for etcd's address, modified by `change`, and its key.
    pub(crate) fn issue_one(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([SWITCH.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.authority()).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}-key.pem"), &key.serialize_pem());
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    pub(crate) fn authority(&self) -> Issuer<'static, KeyPair> {
        let key = fs::read_to_string(self.path("ca-key.pem")).unwrap();
        Issuer::new(self.authority_params(), KeyPair::from_pem(&key).unwrap())
    }

    fn authority_params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, self.0.path().display().to_string());
        params
    }

    pub(crate) fn write(&self, file: &str, text: &str) -> PathBuf {
        let path = self.path(file);
        fs::write(&path, text).unwrap();
        path
    }

    /// An etcd that requires client certificates.
    pub(crate) fn options(&self) -> EtcdOptions {
        self.options_for(Some("client"))
    }

    /// An etcd with TLS that requires no client certificates.
    pub(crate) fn one_sided(&self) -> EtcdOptions {
        self.options_for(None)
    }

    /// An etcd that requires client certificates if `client` names one for the test's own requests.
    pub(crate) fn options_for(&self, client: Option<&str>) -> EtcdOptions {
        let tls = EtcdTls {
            authority: self.path("ca.pem"),
            certificate: self.path("server.pem"),
            key: self.path("server-key.pem"),
            client: client
                .map(|name| (self.path(&format!("{name}.pem")), self.path(&format!("{name}-key.pem")))),
        };
        EtcdOptions { tls: Some(tls), ..EtcdOptions::default() }
    }
}
