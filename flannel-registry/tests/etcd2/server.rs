//! An etcd for one test, and what only its operator can do to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_netlink::Namespace;
use flannel_registry::{Etcd2Options, Etcd2Registry};
use flannel_testing::{Etcd, EtcdOptions};

use crate::common::subnet_key;

pub(crate) struct Server(Mutex<Etcd>);

impl Server {
    /// Starts an etcd that serves the v2 interface.
    pub(crate) fn start() -> Self {
        Self::start_with(EtcdOptions { enable_v2: true, ..EtcdOptions::default() })
    }

    /// Starts one with more arguments, at port 2379 of a loopback address.
    pub(crate) fn start_at(address: IpAddr, arguments: &[String]) -> Self {
        let inside = Some((Namespace::current().unwrap(), address));
        Self::start_with(EtcdOptions {
            enable_v2: true,
            inside,
            arguments: arguments.to_vec(),
            ..EtcdOptions::default()
        })
    }

    pub(crate) fn start_without_v2() -> Self {
        Self::start_with(EtcdOptions::default())
    }

    fn start_with(options: EtcdOptions) -> Self {
        Self(Mutex::new(Etcd::start_with(options).unwrap()))
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn url(&self) -> String {
        self.etcd().client_url()
    }

    /// Options that notice a silent etcd soon.
    pub(crate) fn options(&self) -> Etcd2Options {
        let mut options = Etcd2Options::default();
        options.endpoints = vec![self.url()];
        options.timeout = Duration::from_secs(2);
        options.silence = Duration::from_secs(3);
        options
    }

    pub(crate) fn registry(&self) -> Etcd2Registry {
        Etcd2Registry::new(self.options()).unwrap()
    }

    /// Runs `etcdctl` with the v2 interface and answers with what it writes, without the last line break.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = std::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "2")
            .args(["--endpoints", &self.url()])
            .args(arguments)
            .output()
            .expect("apt-get install -y etcd-client");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    /// Writes a record without an end.
    pub(crate) fn put(&self, name: &str, value: &[u8]) {
        let answer = self.http().request("PUT", &subnet_key(name), &form(value));
        assert!(answer.starts_with("{\"action\":\"set\""), "{answer}");
    }

    pub(crate) fn remove(&self, name: &str) {
        self.http().request("DELETE", &subnet_key(name), "");
    }

    /// Makes etcd forget all changes so far: it remembers 1000, of whatever key.
    pub(crate) fn compact(&self) {
        let mut http = self.http();
        for _ in 0..1001 {
            http.request("PUT", "/unrelated", "value=1");
        }
    }

    pub(crate) fn http(&self) -> Http {
        Http::to(self.etcd().client_address())
    }
}

/// A form with a value of any bytes.
fn form(value: &[u8]) -> String {
    let escaped: String = value.iter().map(|byte| format!("%{byte:02x}")).collect();
    format!("value={escaped}")
}

/// A connection by hand.
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    /// Makes a request for a key and answers with the body of the answer.
    pub(crate) fn request(&mut self, method: &str, key: &str, body: &str) -> String {
        self.exchange(method, &format!("/v2/keys{key}"), body)
    }

    /// Reads something that is no key.
    pub(crate) fn get(&mut self, path: &str) -> String {
        self.exchange("GET", path, "")
    }

    fn exchange(&mut self, method: &str, path: &str, body: &str) -> String {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(self.stream.read_line(&mut line).unwrap() > 0, "etcd hung up");
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                _ if line == "\r\n" => break,
                _ => {}
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }
}
