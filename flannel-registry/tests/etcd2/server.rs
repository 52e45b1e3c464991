//! An etcd for one test, with operator access.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flannel_netlink::Namespace;
use flannel_registry::{Etcd2Options, Etcd2Registry};
use flannel_testing::{Etcd, EtcdOptions, random_loopback_address};

use crate::common::certificates::Certificates;
use crate::common::subnet_key;

/// A key outside the network, which any user may write.
const UNRELATED: &str = "/unrelated";

pub(crate) struct Server {
    etcd: Mutex<Etcd>,
    /// The password of `root`, if authentication is on.
    password: Option<&'static str>,
    /// The TLS endpoint and its certificates.
    secured: Option<(String, Certificates)>,
}

impl Server {
    /// Starts an etcd with the v2 interface.
    pub(crate) fn start() -> Self {
        Self::start_with(EtcdOptions { enable_v2: true, ..EtcdOptions::default() })
    }

    /// Starts an etcd that requires client certificates on its TLS endpoint. The operator uses another endpoint.
    pub(crate) fn start_tls() -> Self {
        let (files, address) = (Certificates::new(), random_loopback_address());
        files.server("server", address);
        files.client("client");
        Self::start_with_certificates(files, address)
    }

    /// As [`start_tls`](Self::start_tls), with the given `server.pem`.
    pub(crate) fn start_with_certificates(files: Certificates, address: Ipv4Addr) -> Self {
        let url = format!("https://{address}:2383");
        let path = |name: &str| files.path(name).display().to_string();
        let arguments = [
            format!("--listen-client-urls=http://{address}:2379,{url}"),
            format!("--cert-file={}", path("server.pem")),
            format!("--key-file={}", path("server-key.pem")),
            format!("--trusted-ca-file={}", path("ca.pem")),
            "--client-cert-auth=true".to_owned(),
        ];
        let server = Self::start_with(EtcdOptions {
            enable_v2: true,
            inside: Some((Namespace::current().unwrap(), address.into())),
            arguments: arguments.to_vec(),
            ..EtcdOptions::default()
        });
        Self { secured: Some((url, files)), ..server }
    }

    /// Starts an etcd that accepts only `root`, with a password.
    pub(crate) fn start_with_password() -> Self {
        let server = Self::start();
        let password = "secret";
        server.ctl(&["user", "add", &format!("root:{password}")]);
        server.ctl(&["auth", "enable"]);
        let server = Self { password: Some(password), ..server };
        // Guests may do everything until their role is revoked.
        server.ctl(&["role", "revoke", "guest", "--path", "/*", "--readwrite"]);
        // Checking a password takes etcd 0.1 s, which is too long for `compact`.
        server.ctl(&["role", "grant", "guest", "--path", UNRELATED, "--readwrite"]);
        server
    }

    pub(crate) fn start_without_v2() -> Self {
        Self::start_with(EtcdOptions::default())
    }

    fn start_with(options: EtcdOptions) -> Self {
        Self { etcd: Mutex::new(Etcd::start_with(options).unwrap()), password: None, secured: None }
    }

    pub(crate) fn asks_for_a_password(&self) -> bool {
        self.password.is_some()
    }

    /// The certificates, if TLS is on.
    pub(crate) fn certificates(&self) -> &Certificates {
        &self.secured.as_ref().unwrap().1
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the endpoint for hosts.
    pub(crate) fn url(&self) -> String {
        self.secured.as_ref().map_or_else(|| self.etcd().client_url(), |(url, _)| url.clone())
    }

    /// Returns options with short timeouts.
    pub(crate) fn options(&self) -> Etcd2Options {
        let mut options = Etcd2Options::default();
        options.endpoints = vec![self.url()];
        options.timeout = Duration::from_secs(2);
        options.silence = Duration::from_secs(3);
        if let Some(password) = self.password {
            options.user = Some("root".to_owned());
            options.password = password.to_owned();
            // Concurrent requests wait for each other's password checks.
            options.timeout = Duration::from_secs(20);
        }
        if let Some((_, files)) = &self.secured {
            options.ca_file = Some(files.path("ca.pem"));
            options.cert_file = Some(files.path("client.pem"));
            options.key_file = Some(files.path("client-key.pem"));
        }
        options
    }

    pub(crate) fn registry(&self) -> Etcd2Registry {
        Etcd2Registry::new(self.options()).unwrap()
    }

    /// Runs `etcdctl` with the v2 interface and returns its output without the last line break.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let mut etcdctl = std::process::Command::new("etcdctl");
        etcdctl.env("ETCDCTL_API", "2").args(["--endpoints", &self.etcd().client_url()]);
        // The default of two seconds is too short on a machine that runs all tests at once.
        etcdctl.args(["--timeout", "30s", "--total-timeout", "60s"]);
        if let Some(password) = self.password {
            etcdctl.args(["--username", &format!("root:{password}")]);
        }
        let output = etcdctl.args(arguments).output().expect("apt-get install -y etcd-client");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    /// Writes a permanent record.
    pub(crate) fn put(&self, name: &str, value: &[u8]) {
        let answer = self.http().request("PUT", &subnet_key(name), &form(value));
        assert!(answer.starts_with("{\"action\":\"set\""), "{answer}");
    }

    pub(crate) fn remove(&self, name: &str) {
        self.http().request("DELETE", &subnet_key(name), "");
    }

    /// Pushes all changes out of etcd's history, which keeps 1000.
    pub(crate) fn compact(&self) {
        let mut http = Http::to(self.etcd().client_address(), None);
        for _ in 0..1001 {
            http.request("PUT", UNRELATED, "value=1");
        }
    }

    pub(crate) fn http(&self) -> Http {
        Http::to(self.etcd().client_address(), self.password)
    }
}

/// Returns a form with a value of any bytes.
fn form(value: &[u8]) -> String {
    let escaped: String = value.iter().map(|byte| format!("%{byte:02x}")).collect();
    format!("value={escaped}")
}

/// A plain HTTP connection.
pub(crate) struct Http {
    stream: BufReader<TcpStream>,
    /// The `Authorization` header line.
    authorization: String,
}

impl Http {
    fn to(address: SocketAddr, password: Option<&str>) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let who = password.map(|password| STANDARD.encode(format!("root:{password}")));
        let authorization = who.map(|who| format!("Authorization: Basic {who}\r\n")).unwrap_or_default();
        Self { stream: BufReader::new(stream), authorization }
    }

    /// Sends a request for a key and returns the response body.
    pub(crate) fn request(&mut self, method: &str, key: &str, body: &str) -> String {
        self.exchange(method, &format!("/v2/keys{key}"), body)
    }

    /// Reads a path outside the keys.
    pub(crate) fn get(&mut self, path: &str) -> String {
        self.exchange("GET", path, "")
    }

    fn exchange(&mut self, method: &str, path: &str, body: &str) -> String {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n{}\r\n{body}",
            body.len(),
            self.authorization
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
