//! Starting, stopping and restoring the etcd program.

#![allow(clippy::unwrap_used, reason = "a failed expectation is how a test fails")]

use flannel_netlink::{LinkChange, Namespace, Netlink};
use flannel_testing::{Etcd, EtcdOptions};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::Path;

#[test]
fn a_key_survives_a_restart_on_the_same_address() {
    let mut etcd = Etcd::start().unwrap();
    let url = etcd.client_url();
    etcd.etcdctl(&["put", "/net/config", "before"]).unwrap();
    etcd.stop().unwrap();
    assert_eq!(etcd.id(), None);
    assert!(TcpStream::connect(etcd.client_address()).is_err());
    etcd.restart().unwrap();
    assert_eq!(etcd.client_url(), url);
    assert_eq!(etcd.etcdctl(&["get", "--print-value-only", "/net/config"]).unwrap(), "before\n");
    etcd.kill().unwrap();
    etcd.restart().unwrap();
    assert_eq!(etcd.etcdctl(&["get", "--print-value-only", "/net/config"]).unwrap(), "before\n");
}

#[test]
fn a_wiped_store_starts_at_the_first_revision() {
    let mut etcd = Etcd::start().unwrap();
    for _ in 0..3 {
        etcd.etcdctl(&["put", "key", "value"]).unwrap();
    }
    etcd.wipe_data().unwrap();
    let answer = etcd.etcdctl(&["get", "key", "--write-out=json"]).unwrap();
    assert!(answer.contains("\"revision\":1,"), "{answer}");
    assert!(!answer.contains("kvs"), "{answer}");
}

#[test]
fn the_v2_api_is_served_only_if_enabled() {
    let options = EtcdOptions { enable_v2: true, ..EtcdOptions::default() };
    let old = Etcd::start_with(options).unwrap();
    assert!(http_get(&old, "/v2/keys/").contains(" 200 OK"));
    let new = Etcd::start().unwrap();
    assert!(http_get(&new, "/v2/keys/").contains(" 404 Not Found"));
}

#[test]
fn servers_started_at_once_are_independent() {
    let servers: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| Etcd::start().unwrap())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    for (i, etcd) in servers.iter().enumerate() {
        etcd.etcdctl(&["put", &format!("key-{i}"), "mine"]).unwrap();
    }
    for (i, etcd) in servers.iter().enumerate() {
        let keys = etcd.etcdctl(&["get", "--prefix", "--keys-only", "key-"]).unwrap();
        assert_eq!(keys.trim(), format!("key-{i}"));
    }
}

#[test]
fn a_dropped_server_leaves_neither_process_nor_files() {
    let etcd = Etcd::start().unwrap();
    let id = etcd.id().unwrap();
    let command_line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap();
    let data = command_line.split('\0').skip_while(|argument| *argument != "--data-dir").nth(1).unwrap();
    let data = Path::new(data).to_owned();
    assert!(data.is_dir());
    drop(etcd);
    assert!(!Path::new(&format!("/proc/{id}")).exists());
    assert!(!data.parent().unwrap().exists());
}

#[test]
fn a_server_inside_a_namespace_is_reachable_only_there() {
    let namespace = Namespace::create().unwrap();
    raise_loopback(&namespace);
    let address = IpAddr::from([127, 0, 0, 1]);
    let options = EtcdOptions { inside: Some((namespace.clone(), address)), ..EtcdOptions::default() };
    let etcd = Etcd::start_with(options).unwrap();
    assert_eq!(etcd.client_url(), "http://127.0.0.1:2379");
    etcd.etcdctl(&["put", "key", "inside"]).unwrap();
    let elsewhere = Namespace::create().unwrap();
    raise_loopback(&elsewhere);
    let answer = elsewhere.run(|| TcpStream::connect(etcd.client_address())).unwrap();
    assert!(answer.is_err());
}

#[test]
fn the_error_of_a_server_that_cannot_start_contains_the_cause() {
    let arguments = vec!["--heartbeat-interval=0".to_owned()];
    let options = EtcdOptions { arguments, ..EtcdOptions::default() };
    let message = Etcd::start_with(options).unwrap_err().to_string();
    assert!(message.contains("heartbeat-interval"), "{message}");
}

fn http_get(etcd: &Etcd, path: &str) -> String {
    let mut stream = TcpStream::connect(etcd.client_address()).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn raise_loopback(namespace: &Namespace) {
    let mut netlink = Netlink::open_in(namespace).unwrap();
    let loopback = netlink.link("lo").unwrap().unwrap().index;
    netlink.change_link(loopback, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
}
