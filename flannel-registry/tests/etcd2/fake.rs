//! Servers that a current etcd cannot simulate: old versions, partitions, early ends of polls, and foreign servers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use flannel_core::{RegistryError, RegistryEvent, SubnetRegistry, chain};
use flannel_registry::{Etcd2Options, Etcd2Registry};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::common::{DAY, host, next, subnet, words};

/// A server whose responses a test chooses by the request line; it may also not respond.
struct Fake {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
    listener: AbortHandle,
}

impl Fake {
    async fn answering(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                connections.spawn(async move { serve(client, &log, &*answer).await });
            }
        });
        Self { url, asked, listener: task.abort_handle() }
    }

    fn registry(&self) -> Etcd2Registry {
        registry(&[self])
    }

    /// Returns the requests that contain a text.
    fn asked(&self, text: &str) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn registry(members: &[&Fake]) -> Etcd2Registry {
    let mut options = Etcd2Options::default();
    options.endpoints = members.iter().map(|fake| fake.url.clone()).collect();
    options.timeout = Duration::from_secs(1);
    options.silence = Duration::from_millis(300);
    Etcd2Registry::new(options).unwrap()
}

async fn serve(
    client: TcpStream,
    log: &Mutex<Vec<String>>,
    answer: &(dyn Fn(&str) -> Option<String> + Send + Sync),
) -> Option<()> {
    let mut client = BufReader::new(client);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        client.read_line(&mut first).await.ok().filter(|&read| read > 0)?;
        loop {
            let mut line = String::new();
            client.read_line(&mut line).await.ok().filter(|&read| read > 0)?;
            if let Some((name, value)) = line.trim_end().split_once(": ")
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut form = vec![0; length];
        client.read_exact(&mut form).await.ok()?;
        log.lock().unwrap().push(first.trim_end().to_owned());
        match answer(&first) {
            Some(answer) => client.write_all(answer.as_bytes()).await.ok()?,
            None => std::future::pending().await,
        }
    }
}

/// Returns a response with etcd's headers.
fn answer(status: &str, index: u64, raft: u64, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nX-Etcd-Cluster-Id: 7\r\nX-Etcd-Index: {index}\r\nX-Raft-Index: {raft}\r\n\
         X-Raft-Term: 2\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns the headers of a response whose body follows later.
fn waiting(index: u64, raft: u64) -> String {
    answer("200 OK", index, raft, "").replace("Content-Length: 0", "Transfer-Encoding: chunked")
}

const EMPTY: &str = r#"{"action":"get","node":{"key":"/coreos.com/network/subnets","dir":true,"modifiedIndex":4,"createdIndex":4}}"#;

fn event(index: u64) -> String {
    format!(
        r#"{{"action":"set","node":{{"key":"/coreos.com/network/subnets/10.5.1.0-24","value":"{{}}","modifiedIndex":{index},"createdIndex":{index}}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_response_advances_the_watch_to_its_index() {
    let fake = Fake::answering(|line| {
        Some(match line {
            _ if line.contains("waitIndex=11 ") => answer("200 OK", 5000, 1, ""),
            _ if line.contains("waitIndex=5001 ") => answer("200 OK", 5001, 2, &event(5001)),
            _ if line.contains("wait=true") => waiting(5001, 3),
            _ => answer("200 OK", 10, 0, EMPTY),
        })
    });
    let fake = fake.await;
    let mut watch = fake.registry().watch(None);
    let events = [next(&mut watch).await, next(&mut watch).await];
    assert_eq!(words(&events), ["snapshot ", "put 10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_waits_is_asked_with_backoff() {
    let fake = Fake::answering(|line| {
        Some(answer("200 OK", 10, 0, if line.contains("wait=true") { "" } else { EMPTY }))
    });
    let fake = fake.await;
    let mut watch = fake.registry().watch(None);
    next(&mut watch).await;
    assert!(timeout(Duration::from_secs(3), watch.next()).await.is_err());
    let polls = fake.asked("wait=true").len();
    assert!((4..=8).contains(&polls), "{polls} polls in 3 s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_event_causes_a_list() {
    let fake = Fake::answering(|line| {
        Some(match line {
            _ if line.contains("waitIndex=11 ") => answer("200 OK", 11, 1, "{\"action\":\"set\",\"node\":"),
            _ if line.contains("wait=true") => waiting(11, 1),
            _ => answer("200 OK", 10, 0, EMPTY),
        })
    });
    let fake = fake.await;
    let mut watch = fake.registry().watch(None);
    let events = [next(&mut watch).await, next(&mut watch).await];
    assert_eq!(words(&events), ["snapshot ", "snapshot "]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_event_causes_a_list() {
    let fake = Fake::answering(|line| {
        Some(match line {
            _ if line.contains("waitIndex=11 ") => answer("200 OK", 11, 1, &event(9)),
            _ if line.contains("wait=true") => waiting(11, 1),
            _ => answer("200 OK", 10, 0, EMPTY),
        })
    });
    let fake = fake.await;
    let mut watch = fake.registry().watch(None);
    let events = [next(&mut watch).await, next(&mut watch).await];
    assert_eq!(words(&events), ["snapshot ", "snapshot "]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_member_is_replaced() {
    let cut_off = Fake::answering(|line| match line {
        _ if line.contains("wait=true") => Some(waiting(10, 77)),
        _ if line.contains("quorum=true") && line.contains("/config") => {
            let error = r#"{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":10}"#;
            Some(answer("500 Internal Server Error", 10, 77, error))
        }
        _ => Some(answer("200 OK", 10, 77, EMPTY)),
    });
    let good = Fake::answering(|line| {
        Some(match line {
            _ if line.contains("waitIndex=11 ") => answer("200 OK", 11, 99, &event(11)),
            _ if line.contains("wait=true") => waiting(11, 100),
            _ if line.contains("/config") => {
                let error = r#"{"errorCode":100,"message":"Key not found","cause":"/coreos.com","index":10}"#;
                answer("404 Not Found", 10, 99, error)
            }
            _ => answer("200 OK", 10, 98, EMPTY),
        })
    });
    let (cut_off, good) = (cut_off.await, good.await);
    // The first member to ask is chosen at random.
    let mut watch = loop {
        let mut watch = registry(&[&cut_off, &good]).watch(None);
        next(&mut watch).await;
        if !cut_off.asked("subnets").is_empty() {
            break watch;
        }
    };
    assert_eq!(words(&[next(&mut watch).await]), ["unavailable"]);
    assert_eq!(words(&[next(&mut watch).await, next(&mut watch).await]), ["available", "put 10.5.1.0-24"]);
    assert_eq!(cut_off.asked("/config").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_without_refresh_is_refused_before_any_write() {
    for version in [r#"{"etcdserver":"2.3.1","etcdcluster":"2.2.0"}"#, "etcd 2.0.13"] {
        let fake = Fake::answering(move |_| Some(answer("200 OK", 10, 0, version))).await;
        let error = fake.registry().create(subnet(1), &host(1), DAY).await.unwrap_err();
        assert!(matches!(error, RegistryError::Refused(..)), "{error:?}");
        assert!(chain(&error).contains("2.3"), "{}", chain(&error));
        assert!(fake.asked("PUT").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undecided_cluster_version_is_that_of_the_member() {
    let fake = Fake::answering(|line| {
        Some(match line {
            _ if line.contains("/version") => {
                answer("200 OK", 10, 0, r#"{"etcdserver":"3.4.23","etcdcluster":"not_decided"}"#)
            }
            _ => answer("201 Created", 11, 0, &event(11)),
        })
    });
    fake.await.registry().create(subnet(1), &host(1), DAY).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_server_is_distinguished_from_an_unavailable_etcd() {
    for (status, body, is_away) in [
        ("200 OK", "<html>", false),
        ("301 Moved Permanently\r\nLocation: https://elsewhere", "", false),
        ("404 Not Found", "404 page not found", false),
        ("403 Forbidden", "who are you", false),
        ("502 Bad Gateway", "<html>", true),
        ("200 OK", "{", true),
    ] {
        let fake = Fake::answering(move |_| Some(answer(status, 1, 1, body))).await;
        let error = fake.registry().config().await.unwrap_err();
        let text = chain(&error);
        assert_eq!(matches!(error, RegistryError::Unavailable(..)), is_away, "{text}");
        assert!(text.contains(&fake.url), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_failed_in_raft_may_be_applied() {
    let fake = Fake::answering(|line| {
        Some(if line.contains("/version") {
            answer("200 OK", 10, 0, r#"{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}"#)
        } else {
            let error = r#"{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":10}"#;
            answer("500 Internal Server Error", 10, 0, error)
        })
    });
    let fake = fake.await;
    let created = fake.registry().create(subnet(1), &host(1), DAY).await;
    assert!(matches!(&created, Err(RegistryError::Unknown(..))), "{created:?}");
    let mut watch = fake.registry().watch(None);
    let silent = next(&mut watch).await;
    assert!(
        matches!(&silent, RegistryEvent::Unavailable(reason) if reason.contains("300: Raft")),
        "{silent:?}"
    );
}
