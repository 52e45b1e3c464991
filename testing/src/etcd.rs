//! A real etcd for a test: started within a second, stopped, killed and restarted at will, gone with its
//! handle.
//!
//! Each server listens on a loopback address of its own (all of 127.0.0.0/8 is local), so parallel tests do
//! not take each other's ports, not even while a server is down and its port free. Its files live in memory
//! where they can.

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

/// The Debian packages that bring `etcd` and `etcdctl`.
const PACKAGES: &str = "etcd-server etcd-client";
/// A server on an idle machine is healthy after 0.2 s; a machine that runs all tests at once is slower.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A server that stops in order waits for its connections to drain.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Another program may take a port between our choice and the server's bind; not five times.
const ATTEMPTS: usize = 5;

/// How an [`Etcd`] is started.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// Serve the v2 API too, which etcd 3.4 does only when told.
    pub enable_v2: bool,
    /// Run inside this namespace, and listen on this address of it (port 2379), instead of on a loopback
    /// address of the caller's namespace.
    pub inside: Option<(Namespace, IpAddr)>,
    /// Serve clients over TLS. Certificates name addresses, so this goes together with `inside`.
    pub tls: Option<EtcdTls>,
    /// More arguments for the program, such as `--quota-backend-bytes=…`.
    pub arguments: Vec<String>,
}

/// One running etcd server. Dropping it kills the server and removes its files.
#[derive(Debug)]
pub struct Etcd {
    options: EtcdOptions,
    namespace: Namespace,
    client: SocketAddr,
    peer: SocketAddr,
    /// Where it tells its health without TLS.
    health: SocketAddr,
    /// The password of its user `root`, once it asks for one.
    password: Option<String>,
    // Declared before the files, so that the server is gone when they are removed.
    server: Option<Process>,
    files: DataDirectory,
}

impl Etcd {
    /// Starts a server with the v3 API and waits until it is healthy.
    ///
    /// # Errors
    /// Names the command that installs etcd when it is missing; shows the server's last words when it does
    /// not come up.
    pub fn start() -> Result<Self, EtcdError> {
        Self::start_with(EtcdOptions::default())
    }

    /// Starts a server as `options` say and waits until it is healthy.
    ///
    /// # Errors
    /// As [`Etcd::start`].
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

    /// Where clients connect to, such as `http://127.8.7.6:40001`.
    #[must_use]
    pub fn client_url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.client)
    }

    /// Where clients connect to.
    #[must_use]
    pub fn client_address(&self) -> SocketAddr {
        self.client
    }

    /// The server's process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.server.as_ref().map(Process::id)
    }

    /// Stops the server in order (SIGTERM). Its data and ports are kept for [`Etcd::restart`].
    ///
    /// # Errors
    /// Fails when the server still runs after a minute. A server that is down already is no error.
    pub fn stop(&mut self) -> Result<(), EtcdError> {
        if let Some(mut server) = self.server.take() {
            server.terminate(STOP_LIMIT)?;
        }
        Ok(())
    }

    /// Kills the server at once (SIGKILL). Its data and ports are kept for [`Etcd::restart`].
    ///
    /// # Errors
    /// Fails when the kernel does not know the process. A server that is down already is no error.
    pub fn kill(&mut self) -> Result<(), EtcdError> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
        }
        Ok(())
    }

    /// Freezes the server (SIGSTOP): connections to it stay open and nothing is answered.
    ///
    /// # Errors
    /// Fails when the signal cannot be sent. A server that is down is no error.
    pub fn pause(&mut self) -> Result<(), EtcdError> {
        Ok(self.server.as_mut().map_or(Ok(()), |server| server.signal(libc::SIGSTOP))?)
    }

    /// Lets a frozen server go on (SIGCONT).
    ///
    /// # Errors
    /// Fails when the signal cannot be sent. A server that is down is no error.
    pub fn resume(&mut self) -> Result<(), EtcdError> {
        Ok(self.server.as_mut().map_or(Ok(()), |server| server.signal(libc::SIGCONT))?)
    }

    /// Starts the server with the same data on the same ports, after killing one that runs, and waits until
    /// it is healthy.
    ///
    /// # Errors
    /// Shows the server's last words when it does not come up.
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
            Ok(Err(status)) => Err(EtcdError::Ended { log: last_words(server, status) }),
            Err(source) => Err(EtcdError::NotHealthy { url: self.client_url(), source }),
        }
    }

    /// Empties the store as if a new cluster had been set up at the same place: the server is stopped, its
    /// data deleted, and a new server started whose revisions begin at 1.
    ///
    /// # Errors
    /// As [`Etcd::restart`].
    pub fn wipe_data(&mut self) -> Result<(), EtcdError> {
        self.kill()?;
        self.files.clear()?;
        self.restart()
    }

    /// Saves a backup of the store, for [`Etcd::restore_backup`]. A later one replaces it.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`].
    pub fn back_up(&self) -> Result<(), EtcdError> {
        self.etcdctl(&["snapshot", "save", &self.files.backup().to_string_lossy()]).map(drop)
    }

    /// Replaces the store by its backup and starts the server again, as an operator does after a disaster. The
    /// cluster keeps its id; its revision goes back, and its term begins anew.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`] and [`Etcd::restart`].
    pub fn restore_backup(&mut self) -> Result<(), EtcdError> {
        self.kill()?;
        self.files.clear()?;
        self.restore(&self.files.backup(), self.peer)?;
        self.restart()
    }

    /// Starts another server from the last backup of this one: a member of the same cluster, by its id, that has
    /// missed all that came later.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`] and [`Etcd::start`].
    pub fn start_from_backup(&self) -> Result<Self, EtcdError> {
        let mut other = Self::start_with(EtcdOptions { inside: None, ..self.options.clone() })?;
        other.kill()?;
        other.files.clear()?;
        other.restore(&self.files.backup(), self.peer)?;
        other.restart()?;
        Ok(other)
    }

    /// Makes the data of a lone member with this peer address from a backup.
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

    /// Lets in nobody but users with a password from now on, and makes a user `root` who may do everything.
    /// [`Etcd::etcdctl`] acts as that one.
    ///
    /// # Errors
    /// As [`Etcd::etcdctl`].
    pub fn require_password(&mut self, password: &str) -> Result<(), EtcdError> {
        self.etcdctl(&["user", "add", &format!("root:{password}")])?;
        self.etcdctl(&["user", "grant-role", "root", "root"])?;
        self.etcdctl(&["auth", "enable"])?;
        self.password = Some(password.to_owned());
        Ok(())
    }

    /// Runs `etcdctl` with the v3 API against this server and answers with what it writes.
    ///
    /// # Errors
    /// Contains what it wrote to standard error, when it fails; names the command that installs it, when it
    /// is missing.
    pub fn etcdctl<A: AsRef<str>>(&self, arguments: &[A]) -> Result<String, EtcdError> {
        self.run("etcdctl", arguments)
    }

    fn run<A: AsRef<str>>(&self, tool: &'static str, arguments: &[A]) -> Result<String, EtcdError> {
        let mut command = Command::new(program(tool, PACKAGES)?);
        command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.client_url());
        if let Some(tls) = &self.options.tls {
            tls.tell_client(&mut command);
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

    /// The server as it is started each time.
    fn command(&self) -> Result<Command, EtcdError> {
        let (client, peer) = (self.client_url(), format!("http://{}", self.peer));
        let mut command = Command::new(program("etcd", PACKAGES)?);
        // A server started by a package or a container image is configured by its environment; ours is not.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        command.args(["--name=test", "--logger=zap", "--log-outputs=stderr", "--log-level=warn"]);
        // A lone server waits one election timeout before it serves, and grants no lease shorter than 1.5 of
        // them.
        command.args(["--heartbeat-interval=20", "--election-timeout=200"]);
        // Passwords of a test need not resist anybody; to check one otherwise takes a tenth of a second.
        command.arg("--bcrypt-cost=4");
        command.arg("--data-dir").arg(self.files.path());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("test={peer}")]);
        command.arg(format!("--listen-metrics-urls=http://{}", self.health));
        if let Some(tls) = &self.options.tls {
            tls.tell_server(&mut command);
        }
        if self.options.enable_v2 {
            command.arg("--enable-v2");
        }
        command.args(&self.options.arguments);
        // etcd refuses processors it was not tested on unless they are named here.
        command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"));
        Ok(command)
    }
}

/// Where the server runs, and the addresses for its clients, its (absent) peers and questions for its health.
fn choose_endpoints(options: &EtcdOptions) -> io::Result<(Namespace, [SocketAddr; 3])> {
    if let Some((namespace, address)) = &options.inside {
        return Ok((namespace.clone(), [2379, 2380, 2381].map(|port| SocketAddr::new(*address, port))));
    }
    // All listeners are open at once, so that the kernel gives different ports.
    let address = random_loopback_address();
    let listeners: [io::Result<TcpListener>; 3] = std::array::from_fn(|_| TcpListener::bind((address, 0)));
    let [client, peer, health] = listeners;
    let (client, peer, health) = (client?, peer?, health?);
    Ok((Namespace::current()?, [client.local_addr()?, peer.local_addr()?, health.local_addr()?]))
}

/// The last lines that a server wrote which has ended with `status`.
fn last_words(mut server: Process, status: ExitStatus) -> String {
    // Reaping it also completes its log.
    drop(server.kill());
    let lines = server.lines();
    let first = lines.len().saturating_sub(10);
    format!("{status}\n{}", lines.get(first..).unwrap_or_default().join("\n"))
}

/// Why an [`Etcd`] is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// The programs are not there: install them.
    #[error(transparent)]
    NotInstalled(#[from] MissingProgram),
    /// The server ended instead of serving: its log says why.
    #[error("etcd ended at once: {log}")]
    Ended {
        /// Exit status and last lines.
        log: String,
    },
    /// The server runs and does not answer.
    #[error("etcd at {url} is not healthy")]
    NotHealthy {
        /// Where it should answer.
        url: String,
        /// What the last attempt met.
        source: DeadlineExceeded,
    },
    /// `etcdctl` failed: the command is wrong or the server down.
    #[error("etcdctl {arguments}: {message}")]
    Etcdctl {
        /// The arguments it was given.
        arguments: String,
        /// What it wrote.
        message: String,
    },
    /// The machine has no process, port or file for us.
    #[error("etcd cannot be run")]
    System(#[from] io::Error),
}
