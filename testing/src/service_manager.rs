//! The service manager's side of `sd_notify(3)` and `sd_listen_fds(3)`, for one service.

use crate::process::Process;
use crate::sys;
use flannel_netlink::Namespace;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long the listening thread waits for a message before it checks whether to stop.
const TICK: Duration = Duration::from_millis(20);

/// Starts a service, receives its messages and stores descriptors for it across restarts, as systemd does for a unit
/// with `FileDescriptorStoreMax=`.
#[derive(Debug)]
pub struct ServiceManager {
    path: PathBuf,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: UnixDatagram,
    /// `FileDescriptorStoreMax=`.
    limit: usize,
    stop: AtomicBool,
    received: Mutex<Received>,
}

#[derive(Debug, Default)]
struct Received {
    messages: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    /// Creates a manager that stores at most this many descriptors.
    ///
    /// # Errors
    /// Fails if a socket cannot be created in the temporary directory.
    pub fn new(limit: usize) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("manager-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Names in the abstract namespace are not visible from other network namespaces.
        let path = std::env::temp_dir().join(name);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(TICK))?;
        let shared =
            Arc::new(Shared { socket, limit, stop: AtomicBool::new(false), received: Mutex::default() });
        let listening = Arc::clone(&shared);
        let listener = Some(thread::spawn(move || listening.listen()));
        Ok(Self { path, shared, listener })
    }

    /// Starts the service in a namespace and passes the stored descriptors, except those that hung up.
    ///
    /// # Errors
    /// See [`Process::spawn_in`]; also fails if a descriptor cannot be duplicated.
    pub fn start(&self, namespace: &Namespace, service: &Command) -> io::Result<Process> {
        let (names, descriptors) = self.to_be_passed()?;
        // The shell becomes the service, so its process ID is the service's.
        let mut command = Command::new("/bin/sh");
        command.args([OsStr::new("-c"), OsStr::new("LISTEN_PID=$$ exec \"$0\" \"$@\"")]);
        command.arg(service.get_program()).args(service.get_args());
        for (name, value) in service.get_envs() {
            value.map(|value| command.env(name, value));
        }
        command.env("NOTIFY_SOCKET", &self.path);
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        command.env("LISTEN_PID", "");
        Process::spawn_passing(namespace, command, descriptors)
    }

    /// Returns the names of the stored descriptors, sorted.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        self.drop_hung_up();
        let mut names: Vec<_> = self.shared.lock().kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Returns the messages of the service.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.shared.lock().messages.clone()
    }

    /// Closes the stored descriptors, as after the service was stopped.
    pub fn stopped(&self) {
        self.shared.lock().kept.clear();
    }

    fn to_be_passed(&self) -> io::Result<(Vec<String>, Vec<OwnedFd>)> {
        self.drop_hung_up();
        let received = self.shared.lock();
        let names: Vec<_> = received.kept.iter().map(|(name, _)| name.clone()).collect();
        let copies = received.kept.iter().map(|(_, descriptor)| descriptor.try_clone());
        Ok((names, copies.collect::<io::Result<_>>()?))
    }

    /// Drops descriptors with an error or a hang-up (`FDPOLL` in `sd_notify(3)`).
    fn drop_hung_up(&self) {
        let is_of_use = |descriptor: &OwnedFd| !sys::has_hung_up(descriptor.as_fd()).unwrap_or(false);
        self.shared.lock().kept.retain(|(_, descriptor)| is_of_use(descriptor));
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(Err(_)) = self.listener.take().map(JoinHandle::join) {
            tracing::error!("the thread of a service manager panicked");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Shared {
    fn listen(&self) {
        let mut buf = vec![0; 4096];
        while !self.stop.load(Ordering::Acquire) {
            if let Ok((len, descriptors)) = sys::receive_with_descriptors(&self.socket, &mut buf) {
                let message = String::from_utf8_lossy(buf.get(..len).unwrap_or_default()).into_owned();
                self.handle(message, descriptors);
            }
        }
    }

    fn handle(&self, message: String, descriptors: Vec<OwnedFd>) {
        let value = |key: &str| message.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let name = value("FDNAME").unwrap_or("stored").to_owned();
        let mut received = self.lock();
        if value("FDSTOREREMOVE") == Some("1") {
            received.kept.retain(|(kept, _)| *kept != name);
        } else if value("FDSTORE") == Some("1") {
            let room = self.limit.saturating_sub(received.kept.len());
            received
                .kept
                .extend(descriptors.into_iter().take(room).map(|descriptor| (name.clone(), descriptor)));
        }
        received.messages.push(message);
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
