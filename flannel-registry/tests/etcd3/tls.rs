//! etcd over TLS: authorities, client certificates and errors.

use flannel_core::{RegistryError, RegistryEvent, SubnetRegistry};
use flannel_registry::{Etcd3Options, Etcd3OptionsError, Etcd3Registry};
use flannel_testing::random_loopback_address;

use crate::common::certificates::{Certificates, SPOILT};
use crate::server::{DAY, Server, host, next, subnet, words};

/// Reads the config with a registry of these options.
async fn ask(options: Etcd3Options) -> Result<Option<String>, RegistryError> {
    Etcd3Registry::new(options).unwrap().config().await
}

/// Asserts the kind of an error, and that its text has one line with all of `parts`.
fn assert_answer(answer: Result<Option<String>, RegistryError>, refused: bool, words: &[&str]) {
    let error = answer.unwrap_err();
    let text = flannel_core::chain(&error);
    assert_eq!(matches!(error, RegistryError::Refused(..)), refused, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text:?}");
    }
    assert!(!text.contains('\n'), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_file_is_enough_if_etcd_requires_no_client_certificate() {
    let server = Server::start_tls(false);
    assert!(server.url().starts_with("https://"));
    assert_eq!(ask(server.options()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_accepted_in_every_pem_format() {
    let server = Server::start_tls(true);
    let files = server.certificates.as_ref().unwrap();
    let mut options = server.options();
    options.cert_file = Some(files.path("rsa.pem"));
    for key in files.rsa_client() {
        options.key_file = Some(key);
        assert_eq!(ask(options.clone()).await.unwrap(), None, "{:?}", options.key_file);
    }
    assert_eq!(ask(server.options()).await.unwrap(), None, "an elliptic curve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_files_are_named_with_the_reason() {
    let server = Server::start_tls(true);
    let files = server.certificates.as_ref().unwrap();
    files.spoil();
    for (names, [file, reason]) in SPOILT {
        let [ca_file, cert_file, key_file] = names.map(|name| Some(files.path(name)));
        let mut options = server.options();
        (options.ca_file, options.cert_file, options.key_file) = (ca_file, cert_file, key_file);
        assert_answer(ask(options).await, true, &[file, reason, &server.url()]);
    }
}

#[test]
fn a_certificate_without_its_key_is_refused_with_upstreams_text() {
    let mut options = Etcd3Options::default();
    options.cert_file = Some("x".into());
    let error = Etcd3Registry::new(options).unwrap_err();
    assert!(matches!(error, Etcd3OptionsError::IncompleteKeyPair { .. }));
    assert_eq!(error.to_string(), "KeyFile and CertFile must both be present[key: , cert: x]");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_untrusted_server_is_reported_with_the_ca_file() {
    let (files, address) = (Certificates::new(), random_loopback_address());
    files.expired_server("server", address);
    files.client("client");
    let stranger = Certificates::new();
    let expired = Server::start_with_certificates(files, address, false);
    let url = expired.url();
    assert_answer(ask(expired.options()).await, false, &[&url, "expired", "ca.pem"]);

    let server = Server::start_tls(false);
    let mut options = server.options();
    options.ca_file = Some(stranger.path("ca.pem"));
    let trusted = stranger.path("ca.pem").display().to_string();
    assert_answer(ask(options.clone()).await, false, &[&server.url(), "UnknownIssuer", &trusted]);
    options.ca_file = None;
    assert_answer(ask(options).await, false, &[&server.url()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_client_is_reported_with_its_certificate() {
    let server = Server::start_tls(true);
    let stranger = Certificates::new();
    stranger.client("stranger");
    let mut options = server.options();
    options.cert_file = Some(stranger.path("stranger.pem"));
    options.key_file = Some(stranger.path("stranger-key.pem"));
    assert_answer(ask(options.clone()).await, false, &[&server.url(), "stranger.pem"]);
    let files = server.certificates.as_ref().unwrap();
    files.expired_client("late");
    options.cert_file = Some(files.path("late.pem"));
    options.key_file = Some(files.path("late-key.pem"));
    assert_answer(ask(options.clone()).await, false, &[&server.url(), "late.pem (expired)"]);
    (options.cert_file, options.key_file) = (None, None);
    assert_answer(ask(options).await, false, &[&server.url(), "no client certificate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_certificates_are_used_without_a_restart() {
    let server = Server::start_tls(true);
    let files = server.certificates.as_ref().unwrap();
    let stranger = Certificates::new();
    stranger.client("client");
    let good = (files.read("client.pem"), files.read("client-key.pem"));
    files.write("client.pem", &stranger.read("client.pem"));
    files.write("client-key.pem", &stranger.read("client-key.pem"));
    let registry = server.registry();
    assert_answer(registry.config().await, false, &["client.pem"]);

    files.write("client.pem", &good.0);
    files.write("client-key.pem", &good.1);
    registry.config().await.unwrap();
    let mut watch = registry.watch(None);
    assert!(matches!(next(&mut watch).await, RegistryEvent::Snapshot(_)));
    registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.1.0-24"]);

    // Replacing only one file of the pair breaks nothing, and replacing the other does not disturb an open watch.
    files.client("next");
    files.write("client.pem", &files.read("next.pem"));
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    files.write("client-key.pem", &files.read("next-key.pem"));
    registry.create(subnet(3), &host(3), DAY).await.unwrap();
    let events = [next(&mut watch).await, next(&mut watch).await];
    assert_eq!(words(&events), ["put 10.5.2.0-24", "put 10.5.3.0-24"]);
    assert_eq!(registry.calls().watch, 1);
}
