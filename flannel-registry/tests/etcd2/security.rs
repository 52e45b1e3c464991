//! Who is trusted, and who one is.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use flannel_core::{RegistryError, SubnetRegistry, chain};
use flannel_registry::{Etcd2Options, Etcd2OptionsError, Etcd2Registry};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::common::{DAY, PREFIX, host, next, subnet, words};
use crate::server::Server;

/// A directory of certificates, removed with its handle.
struct Office {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Office {
    fn open() -> Self {
        let directory =
            std::env::temp_dir().join(format!("flannel-registry-etcd2-{:016x}", fastrand::u64(..)));
        fs::create_dir(&directory).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, format!("CA {}", fastrand::u64(..)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        fs::write(directory.join("ca.crt"), certificate.pem()).unwrap();
        Self { directory, issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate for a name or an address, and its key.
    fn issue(&self, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, file);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.file(&format!("{file}.crt")), certificate.pem()).unwrap();
        fs::write(self.file(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Office {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// An etcd that shows a certificate and asks for one, and where it does so.
fn secure_server(office: &Office) -> (Server, String) {
    let address = Ipv4Addr::new(127, fastrand::u8(1..), fastrand::u8(..), fastrand::u8(1..255));
    office.issue("server", &address.to_string());
    let path = |name: &str| office.file(name).display().to_string();
    let arguments = [
        format!("--listen-client-urls=http://{address}:2379,https://{address}:2383"),
        format!("--cert-file={}", path("server.crt")),
        format!("--key-file={}", path("server.key")),
        format!("--trusted-ca-file={}", path("ca.crt")),
        "--client-cert-auth=true".to_owned(),
    ];
    let server = Server::start_at(IpAddr::V4(address), &arguments);
    (server, format!("https://{address}:2383"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_shown_and_asked_for() {
    let (office, stranger) = (Office::open(), Office::open());
    let (server, url) = secure_server(&office);
    office.issue("client", "host-1");
    stranger.issue("client", "host-1");
    let mut options = server.options();
    options.endpoints = vec![url.clone()];
    options.ca_file = Some(office.file("ca.crt"));
    options.cert_file = Some(office.file("client.crt"));
    options.key_file = Some(office.file("client.key"));

    let registry = Etcd2Registry::new(options.clone()).unwrap();
    let mut watch = registry.watch(None);
    assert_eq!(words(&[next(&mut watch).await]), ["snapshot "]);
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
    registry.renew(&lease, DAY).await.unwrap();
    registry.delete(&lease).await.unwrap();

    let refused = async |options: &Etcd2Options| {
        let registry = Etcd2Registry::new(options.clone()).unwrap();
        let error = registry.config().await.unwrap_err();
        assert!(matches!(error, RegistryError::Unavailable(..)), "{error:?}");
        let text = chain(&error).to_lowercase();
        assert!(text.contains("certificate") && text.contains(&url), "{text}");
    };
    let mut nameless = options.clone();
    (nameless.cert_file, nameless.key_file) = (None, None);
    refused(&nameless).await;
    let mut deceived = options.clone();
    deceived.ca_file = Some(stranger.file("ca.crt"));
    refused(&deceived).await;
    deceived.ca_file = None;
    refused(&deceived).await;

    // A certificate that is replaced counts from the next connection on.
    let replace = |by: &Office| {
        for file in ["client.crt", "client.key"] {
            fs::copy(by.file(file), office.file(&format!("own-{file}"))).unwrap();
        }
    };
    replace(&stranger);
    options.cert_file = Some(office.file("own-client.crt"));
    options.key_file = Some(office.file("own-client.key"));
    refused(&options).await;
    let registry = Etcd2Registry::new(options).unwrap();
    assert!(registry.config().await.is_err());
    replace(&office);
    assert_eq!(registry.config().await.unwrap(), None);
}

#[test]
fn files_that_cannot_be_used_are_named_at_once() {
    let office = Office::open();
    office.issue("client", "host-1");
    let mut options = Etcd2Options::default();
    options.endpoints = vec!["https://127.0.0.1:2379".to_owned()];
    options.ca_file = Some(office.file("ca.crt"));
    options.cert_file = Some(office.file("client.crt"));
    let half = Etcd2Registry::new(options.clone()).unwrap_err();
    assert_eq!(half, Etcd2OptionsError::HalfACertificate);
    for (key, ca) in [("missing.key", "ca.crt"), ("client.crt", "ca.crt"), ("client.key", "client.key")] {
        options.key_file = Some(office.file(key));
        options.ca_file = Some(office.file(ca));
        let error = Etcd2Registry::new(options.clone()).unwrap_err().to_string();
        let named = if ca == "ca.crt" { key } else { ca };
        assert!(error.starts_with(&format!("{}: ", office.file(named).display())), "{error}");
    }
}

#[test]
fn endpoints_that_cannot_work_are_refused_without_telling_a_password() {
    for endpoints in [
        &[][..],
        &["", " "],
        &["ftp://etcd"],
        &["http://a b"],
        &["http://"],
        &["http://etcd:2379/v2"],
        &["http://root:secret@etcd:2379"],
    ] {
        let mut options = Etcd2Options::default();
        options.endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
        let error = Etcd2Registry::new(options).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_is_told_who_asks_if_it_wants_to_know() {
    let server = Server::start();
    server.ctl(&["set", &format!("{PREFIX}/config"), "{}"]);
    server.ctl(&["user", "add", "root:secret"]);
    server.ctl(&["auth", "enable"]);
    // Until then everybody may do everything.
    server.ctl(&["--username", "root:secret", "role", "revoke", "guest", "--path", "/*", "--readwrite"]);
    let mut options = server.options();
    for (user, password) in [(None, ""), (Some("root"), "wrong"), (Some("nobody"), "secret")] {
        options.user = user.map(str::to_owned);
        options.password = password.to_owned();
        let registry = Etcd2Registry::new(options.clone()).unwrap();
        for error in [
            registry.config().await.map(drop).unwrap_err(),
            registry.create(subnet(1), &host(1), DAY).await.map(drop).unwrap_err(),
        ] {
            assert!(matches!(error, RegistryError::Refused(..)), "{user:?}: {error:?}");
        }
    }
    options.user = Some("root".to_owned());
    options.password = "secret".to_owned();
    let registry = Etcd2Registry::new(options).unwrap();
    assert_eq!(registry.config().await.unwrap().as_deref(), Some("{}"));
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
    registry.renew(&lease, DAY).await.unwrap();
}
