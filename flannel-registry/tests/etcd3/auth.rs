//! etcd with users and passwords.

use std::time::Duration;

use flannel_core::{RegistryError, RegistryEvent, SubnetRegistry, chain};
use flannel_registry::{Etcd3Options, Etcd3Registry};
use futures::future::try_join_all;
use tokio::time::sleep;

use crate::server::{DAY, Server, host, next, subnet, until, words};

/// The shortest token TTL of etcd.
const SHORT_TOKENS: &str = "--auth-token-ttl=1";

/// Waits until etcd has dropped all unused tokens.
async fn tokens_expire() {
    // etcd checks for expired tokens once a second. Polling would keep the token alive.
    sleep(Duration::from_millis(3500)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_watches_and_renewals_outlive_their_token() {
    let server = Server::start_with_password(&[SHORT_TOKENS]);
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    assert_eq!(registry.calls().authenticate, 1);

    tokens_expire().await;
    registry.renew(&lease, DAY).await.unwrap();
    assert_eq!(registry.calls().authenticate, 2);

    // The watch starts with the list's token, and opens after etcd dropped it.
    let mut watch = registry.watch(None);
    assert!(matches!(next(&mut watch).await, RegistryEvent::Snapshot(_)));
    tokens_expire().await;
    server.put("10.5.2.0-24", r#"{"PublicIP":"192.168.0.2"}"#);
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);
    assert_eq!(registry.calls().authenticate, 3);

    tokens_expire().await;
    try_join_all((3..13).map(|i| {
        let registry = registry.clone();
        async move { registry.create(subnet(i), &host(i), DAY).await }
    }))
    .await
    .unwrap();
    assert_eq!(registry.calls().authenticate, 4, "ten calls at once ask for one token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_a_lost_token_is_replaced() {
    let server = Server::start_with_password(&[]);
    let registry = server.registry();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    registry.create(subnet(2), &host(2), DAY).await.unwrap();
    assert_eq!(words(&[next(&mut watch).await]), ["put 10.5.2.0-24"]);

    server.etcd().restart().unwrap();
    // The watch needs a token first.
    server.put("10.5.3.0-24", r#"{"PublicIP":"192.168.0.3"}"#);
    let events = until(&mut watch, |event| matches!(event, RegistryEvent::Put(_))).await;
    assert_eq!(words(&events), ["unavailable", "available", "put 10.5.3.0-24"]);
    registry.renew(&lease, DAY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_refused_and_never_shown() {
    let server = Server::start_with_password(&[]);
    let mut options = server.options();
    options.password = "wrong secret".to_owned();
    let shown = format!("{options:?}");
    let registry = Etcd3Registry::new(options).unwrap();
    let error = registry.config().await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
    let text = chain(&error);
    assert!(text.contains("authentication failed") && text.contains(&server.url()), "{text}");
    for text in [text, shown, format!("{registry:?}"), format!("{error:?}")] {
        assert!(!text.contains("wrong secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_is_named_after_etcd_restarted() {
    let server = Server::start_with_password(&[]);
    let registry = server.registry();
    let mut watch = registry.watch(None);
    next(&mut watch).await;
    let client = server.client().await;
    client.auth_client().user_change_password("root", "another secret").await.unwrap();
    server.etcd().restart().unwrap();
    let is_named = |event: &RegistryEvent| matches!(event, RegistryEvent::Unavailable(why) if why.contains("authentication failed"));
    until(&mut watch, is_named).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_permission_is_refused_by_calls_and_watches() {
    let server = Server::start_with_password(&[]);
    server.ctl(&["user", "add", "guest:guest"]);
    let mut options = server.options();
    options.username = "guest".to_owned();
    options.password = "guest".to_owned();
    let registry = Etcd3Registry::new(options).unwrap();
    let error = registry.config().await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
    let mut watch = registry.watch(Some(flannel_core::Revision(1)));
    let event = next(&mut watch).await;
    assert!(
        matches!(&event, RegistryEvent::Unavailable(why) if why.contains("permission denied")),
        "{event:?}"
    );
    // With the permission, the watch continues automatically.
    server.ctl(&["user", "grant-role", "guest", "root"]);
    until(&mut watch, |event| matches!(event, RegistryEvent::Available)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authentication_may_be_enabled_later() {
    let server = Server::start();
    let mut options = server.options();
    options.username = "root".to_owned();
    options.password = "secret".to_owned();
    let registry = Etcd3Registry::new(options).unwrap();
    let lease = registry.create(subnet(1), &host(1), DAY).await.unwrap();
    server.etcd().require_password("secret").unwrap();
    let lease = registry.update(&lease, &host(2), DAY).await.unwrap();
    registry.delete(&lease).await.unwrap();
}

#[test]
fn a_user_without_a_password_is_refused() {
    let mut options = Etcd3Options::default();
    options.username = "root".to_owned();
    let error = Etcd3Registry::new(options.clone()).unwrap_err().to_string();
    assert_eq!(error, "incomplete etcd credentials: a user name without a password");
    (options.username, options.password) = (String::new(), "secret".to_owned());
    let error = Etcd3Registry::new(options).unwrap_err().to_string();
    assert_eq!(error, "incomplete etcd credentials: a password without a user name");
}
