//! A real etcd server for tests, which they can stop, kill, freeze and restart.
//!
//! Each server listens on a loopback address of its own (all of 127.0.0.0/8 is local), so parallel tests do not take
//! each other's ports, even while a server is down. Its files live in memory where possible.

use crate::process::{self, Process};
use crate::{DeadlineExceeded, MissingProgram, eventually, program};
use directory::DataDirectory;
pub use directory::random_loopback_address;
use flannel_netlink::Namespace;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

mod directory;
mod health;
mod tls;

pub use tls::EtcdTls;

/// The Debian packages that contain `etcd` and `etcdctl`.
const PACKAGES: &str = "etcd-server etcd-client";
/// A server on an idle machine is healthy after 0.2 s; a machine that runs all tests at once takes longer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A server that shuts down waits for its connections to drain.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Another program may take a port between our choice and the server's bind, but not five times.
const ATTEMPTS: usize = 5;

/// Options of [`Etcd::start_with`].
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// Whether to serve the v2 API too.
    pub enable_v2: bool,
    /// The namespace and the address to listen on (port 2379), instead of a loopback address in the caller's namespace.
    pub inside: Option<(Namespace, IpAddr)>,
    /// Serves clients over TLS. Certificates contain addresses, so this needs `inside`.
    pub tls: Option<EtcdTls>,
    /// Further arguments for the program, such as `--quota-backend-bytes=…`.
    pub arguments: Vec<String>,
}

/// A running etcd server. Dropping it kills the server and removes its files.
#[derive(Debug)]
pub struct Etcd {
    options: EtcdOptions,
    namespace: Namespace,
    client: SocketAddr,
    peer: SocketAddr,
    /// The address of the health endpoint, without TLS.
    health: SocketAddr,
    /// The password of the user `root`, if authentication is enabled.
    password: Option<String>,
    // Declared before the files, so that the server ends before they are removed.
    server: Option<Process>,
    files: DataDirectory,
}

impl Etcd {
    /// Starts a server with the v3 API and waits until it is healthy.
    ///
    /// # Errors
    /// Contains the command that installs etcd if it is missing, or the server's last log lines if it does not start.
    pub fn start() -> Result<Self, EtcdError> {
        Self::start_with(EtcdOptions::default())
    }

    /// Starts a server with these options and waits until it is healthy.
    ///
    /// # Errors
    /// See [`Etcd::start`].
    pub fn start_with(options: EtcdOptions) -> Result<Self, EtcdError> {
        program("etcd", PACKAGES)?;
        let mut attempt = 1;
        loop {
            let (namespace, [client, peer, health]) = choose_endpoints(&options)?;
            let files = DataDirectory::create()?;
            let (options, password, server) = (options.clone(), None, None);
            let mut etcd = Self { options, namespace, client, peer, health, password, server, files };
            match etcd.restart() {
                Ok(()) => return Ok(etcd),
                Err(EtcdError::Ended { log })
                    if attempt < ATTEMPTS && log.contains("address already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the URL for clients, such as `http://127.8.7.6:40001`.
    #[must_use]
    pub fn client_url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.client)
    }

    /// Returns the address for clients.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.client
    }

    /// Returns the server's process ID while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.server.as_ref().map(Process::id)
    }

    /// Stops the server with SIGTERM. [`Etcd::restart`] reuses its data and ports. Succeeds if the server is down.
    ///
    /// # Errors
    /// Fails if the server still runs after a minute.
    pub fn stop(&mut self) -> Result<(), EtcdError> {
        if let Some(mut server) = self.server.take() {
            server.terminate(STOP_LIMIT)?;
        }
        Ok(())
    }

    /// Kills the server with SIGKILL. [`Etcd::restart`] reuses its data and ports. Succeeds if the server is down.
    ///
    /// # Errors
    /// Fails if the kernel does not know the process.
    pub fn kill(&mut self) -> Result<(), EtcdError> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
        }
        Ok(())
    }

    /// Freezes the server with SIGSTOP: connections stay open without answers. Succeeds if the server is down.
    ///
    /// # Errors
    /// Fails if the signal cannot be sent.
    pub fn pause(&mut self) -> Result<(), EtcdError> {
        Ok(self.server.as_mut().map_or(Ok(()), |server| server.signal(libc::SIGSTOP))?)
    }

    /// Resumes a frozen server with SIGCONT. Succeeds if the server is down.
    ///
    /// # Errors
    /// Fails if the signal cannot be sent.
    pub fn resume(&mut self) -> Result<(), EtcdError> {
        Ok(self.server.as_mut().map_or(Ok(()), |server| server.signal(libc::SIGCONT))?)
    }

    /// Starts the server with the same data on the same ports, after killing a running one, and waits until it is
    /// healthy.
    ///
    /// # Errors
    /// Contains the server's last log lines if it does not start.
    pub fn restart(&mut self) -> Result<(), EtcdError> {
        self.kill()?;
        let mut server = Process::spawn_in(&self.namespace, self.command()?)?;
        let healthy = eventually(START_LIMIT, || match server.exit_status() {
            Ok(None) => health::check(&self.namespace, self.health).map(Ok),
            Ok(Some(status)) => Ok(Err(status)),
            Err(error) => Err(error),
        });
        match healthy {
            Ok(Ok(())) => {
                self.server = Some(server);
                Ok(())
            }
            Ok(Err(status)) => Err(EtcdError::Ended { log: last_log_lines(server, status) }),
            Err(source) => Err(EtcdError::NotHealthy { url: self.client_url(), source }),
        }
    }

    /// Replaces the server by a new one without data at the same address, whose revisions begin at 1.
    ///
    /// # Errors
    /// See [`Etcd::restart`].
    pub fn wipe_data(&mut self) -> Result<(), EtcdError> {
        self.kill()?;
        self.files.clear()?;
        self.restart()
    }

    /// Saves a backup of the store for [`Etcd::restore_backup`], replacing an earlier one.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`].
    pub fn back_up(&self) -> Result<(), EtcdError> {
        self.etcdctl(&["snapshot", "save", &self.files.backup().to_string_lossy()]).map(drop)
    }

    /// Restores the backup and restarts the server. The cluster keeps its ID; its revision goes back, and its raft term
    /// starts over.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`] and [`Etcd::restart`].
    pub fn restore_backup(&mut self) -> Result<(), EtcdError> {
        self.kill()?;
        self.files.clear()?;
        self.restore(&self.files.backup(), self.peer)?;
        self.restart()
    }

    /// Starts another server from the last backup of this one: a member of the same cluster ID that lacks everything
    /// written since.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`] and [`Etcd::start`].
    pub fn start_from_backup(&self) -> Result<Self, EtcdError> {
        let mut other = Self::start_with(EtcdOptions { inside: None, ..self.options.clone() })?;
        other.kill()?;
        other.files.clear()?;
        other.restore(&self.files.backup(), self.peer)?;
        other.restart()?;
        Ok(other)
    }

    /// Restores a backup as the data of a single member with this peer address.
    fn restore(&self, backup: &Path, peer: SocketAddr) -> Result<(), EtcdError> {
        let peer = format!("http://{peer}");
        // From 3.6 on, only etcdutl restores.
        let tool = if program("etcdutl", PACKAGES).is_ok() { "etcdutl" } else { "etcdctl" };
        self.run(
            tool,
            &[
                "snapshot",
                "restore",
                &backup.to_string_lossy(),
                "--name=test",
                &format!("--data-dir={}", self.files.path().display()),
                &format!("--initial-cluster=test={peer}"),
                &format!("--initial-advertise-peer-urls={peer}"),
            ],
        )?;
        Ok(())
    }

    /// Enables authentication and creates the user `root` with all permissions, as which [`Etcd::etcdctl`] runs from
    /// now on.
    ///
    /// # Errors
    /// See [`Etcd::etcdctl`].
    pub fn require_password(&mut self, password: &str) -> Result<(), EtcdError> {
        self.etcdctl(&["user", "add", &format!("root:{password}")])?;
        self.etcdctl(&["user", "grant-role", "root", "root"])?;
        self.etcdctl(&["auth", "enable"])?;
        self.password = Some(password.to_owned());
        Ok(())
    }

    /// Runs `etcdctl` with the v3 API against this server and returns its output.
    ///
    /// # Errors
    /// Contains its standard error if it fails, or the command that installs it if it is missing.
    pub fn etcdctl<A: AsRef<str>>(&self, arguments: &[A]) -> Result<String, EtcdError> {
        self.run("etcdctl", arguments)
    }

    fn run<A: AsRef<str>>(&self, tool: &'static str, arguments: &[A]) -> Result<String, EtcdError> {
        let mut command = Command::new(program(tool, PACKAGES)?);
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.client_url());
        if let Some(tls) = &self.options.tls {
            tls.add_client_variables(&mut command);
        }
        if let Some(password) = &self.password {
            command.env("ETCDCTL_USER", format!("root:{password}"));
        }
        command.args(arguments.iter().map(AsRef::as_ref));
        let output = process::output_in(&self.namespace, command)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(EtcdError::Etcdctl { arguments: arguments.join(" "), message })
    }

    /// Returns the command that starts the server.
    fn command(&self) -> Result<Command, EtcdError> {
        let (client, peer) = (self.client_url(), format!("http://{}", self.peer));
        let mut command = Command::new(program("etcd", PACKAGES)?);
        // Packages and container images configure servers by these variables.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        command.args(["--name=test", "--logger=zap", "--log-outputs=stderr", "--log-level=warn"]);
        // A single server waits one election timeout before it serves, and grants no lease shorter than 1.5 of them.
        command.args(["--heartbeat-interval=20", "--election-timeout=200"]);
        // Test passwords need no protection; a check at the default cost takes a tenth of a second.
        command.arg("--bcrypt-cost=4");
        command.arg("--data-dir").arg(self.files.path());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        command.arg(format!("--listen-metrics-urls=http://{}", self.health));
        if let Some(tls) = &self.options.tls {
            tls.add_server_arguments(&mut command);
        }
        if self.options.enable_v2 {
            command.arg("--enable-v2");
        }
        command.args(&self.options.arguments);
        // etcd refuses to run on processors that it was not tested on unless this names them.
        command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"));
        Ok(command)
    }
}

/// Returns where the server runs, and its addresses for clients, peers (there are none) and health checks.
fn choose_endpoints(options: &EtcdOptions) -> io::Result<(Namespace, [SocketAddr; 3])> {
    if let Some((namespace, address)) = &options.inside {
        return Ok((namespace.clone(), [2379, 2380, 2381].map(|port| SocketAddr::new(*address, port))));
    }
    // All listeners are open at once, so that the kernel assigns different ports.
    let address = random_loopback_address();
    let listeners: [io::Result<TcpListener>; 3] = std::array::from_fn(|_| TcpListener::bind((address, 0)));
    let [client, peer, health] = listeners;
    let (client, peer, health) = (client?, peer?, health?);
    Ok((Namespace::current()?, [client.local_addr()?, peer.local_addr()?, health.local_addr()?]))
}

/// Returns the last log lines of a server that ended with `status`.
fn last_log_lines(mut server: Process, status: ExitStatus) -> String {
    // Reaping the server completes its log.
    drop(server.kill());
    let lines = server.lines();
    let first = lines.len().saturating_sub(10);
    format!("{status}\n{}", lines.get(first..).unwrap_or_default().join("\n"))
}

/// A failure of [`Etcd`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// The programs are not installed.
    #[error(transparent)]
    NotInstalled(#[from] MissingProgram),
    /// The server ended at once; its log contains the cause.
    #[error("etcd ended at once: {log}")]
    Ended {
        /// The exit status and the last log lines.
        log: String,
    },
    /// The server runs but does not answer.
    #[error("etcd at {url} is not healthy")]
    NotHealthy {
        /// The URL that should answer.
        url: String,
        /// The failure of the last attempt.
        source: DeadlineExceeded,
    },
    /// `etcdctl` failed: the command is invalid or the server is down.
    #[error("etcdctl {arguments}: {message}")]
    Etcdctl {
        /// The arguments.
        arguments: String,
        /// The standard error.
        message: String,
    },
    /// A process, port or file could not be created.
    #[error("etcd could not be started")]
    System(#[from] io::Error),
}
