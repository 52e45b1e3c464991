//! TLS and authentication: authorities, client certificates and errors.

use flannel_core::{RegistryError, SubnetRegistry, chain};
use flannel_registry::{Etcd2Options, Etcd2OptionsError, Etcd2Registry};
use flannel_testing::random_loopback_address;

use crate::common::certificates::{Certificates, SPOILT};
use crate::common::{DAY, PREFIX, host, next, subnet, words};
use crate::server::Server;

/// Reads the config with a registry of these options.
async fn ask(options: &Etcd2Options) -> Result<Option<String>, RegistryError> {
    Etcd2Registry::new(options.clone()).unwrap().config().await
}

/// Asserts that etcd cannot be reached, with an error of one line that contains all texts.
async fn fails(options: &Etcd2Options, words: &[&str]) {
    let error = ask(options).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(..)), "{error:?}");
    let text = chain(&error);
    for word in words.iter().chain(&[options.endpoints[0].as_str()]) {
        assert!(text.contains(word), "no {word:?} in {text:?}");
    }
    assert!(!text.contains('\n'), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_accepted_in_every_pem_format() {
    let server = Server::start_tls();
    let mut options = server.options();
    assert_eq!(ask(&options).await.unwrap(), None, "an elliptic curve");
    options.cert_file = Some(server.certificates().path("rsa.pem"));
    for key in server.certificates().rsa_client() {
        options.key_file = Some(key);
        assert_eq!(ask(&options).await.unwrap(), None, "{:?}", options.key_file);
    }
}

#[test]
fn unusable_files_are_named_at_once_with_the_reason() {
    let files = Certificates::new();
    files.client("client");
    files.spoil();
    let mut options = Etcd2Options::default();
    options.endpoints = vec!["https://127.0.0.1:2379".to_owned()];
    for (names, [file, reason]) in SPOILT {
        let [ca_file, cert_file, key_file] = names.map(|name| Some(files.path(name)));
        (options.ca_file, options.cert_file, options.key_file) = (ca_file, cert_file, key_file);
        let error = Etcd2Registry::new(options.clone()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(reason) && !error.contains('\n'), "{error}");
    }
    (options.cert_file, options.key_file) = (Some("x".into()), None);
    let half = Etcd2Registry::new(options).unwrap_err();
    assert!(matches!(half, Etcd2OptionsError::IncompleteKeyPair { .. }), "{half}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untrusted_server_is_reported_with_the_ca_file() {
    let (files, address) = (Certificates::new(), random_loopback_address());
    files.expired_server("server", address);
    files.client("client");
    let expired = Server::start_with_certificates(files, address);
    fails(&expired.options(), &["expired", "ca.pem"]).await;

    let (server, stranger) = (Server::start_tls(), Certificates::new());
    let mut options = server.options();
    options.ca_file = Some(stranger.path("ca.pem"));
    let trusted = stranger.path("ca.pem").display().to_string();
    fails(&options, &["UnknownIssuer", &trusted]).await;
    options.ca_file = None;
    fails(&options, &["those of the system"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_client_is_reported_with_its_certificate() {
    let (server, stranger) = (Server::start_tls(), Certificates::new());
    stranger.client("stranger");
    let mut options = server.options();
    options.cert_file = Some(stranger.path("stranger.pem"));
    options.key_file = Some(stranger.path("stranger-key.pem"));
    fails(&options, &["stranger.pem"]).await;
    let files = server.certificates();
    files.expired_client("late");
    options.cert_file = Some(files.path("late.pem"));
    options.key_file = Some(files.path("late-key.pem"));
    fails(&options, &["late.pem (expired)"]).await;
    (options.cert_file, options.key_file) = (None, None);
    fails(&options, &["no client certificate"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_certificates_are_used_without_a_restart() {
    let (server, stranger) = (Server::start_tls(), Certificates::new());
    stranger.client("client");
    let files = server.certificates();
    let good = ["client.pem", "client-key.pem"].map(|name| files.read(name));
    for name in ["client.pem", "client-key.pem"] {
        files.write(name, &stranger.read(name));
    }
    let registry = server.registry();
    assert!(registry.config().await.is_err());
    for (name, text) in ["client.pem", "client-key.pem"].iter().zip(good) {
        files.write(name, &text);
    }
    assert_eq!(registry.config().await.unwrap(), None);
}

#[test]
fn invalid_endpoints_are_refused_without_showing_a_password() {
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
async fn requests_are_authenticated_if_etcd_requires_it() {
    let server = Server::start_with_password();
    server.ctl(&["set", &format!("{PREFIX}/config"), "{}"]);
    let good = server.options();
    let mut options = good.clone();
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
    let registry = Etcd2Registry::new(good).unwrap();
    assert_eq!(registry.config().await.unwrap().as_deref(), Some("{}"));
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);
    registry.renew(&lease, DAY).await.unwrap();
}
