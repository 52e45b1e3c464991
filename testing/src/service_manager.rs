//! The side of a service manager in `sd_notify(3)` and `sd_listen_fds(3)`, for one service.

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

/// How long the listening thread waits for a message before it looks whether it is to end.
const TICK: Duration = Duration::from_millis(20);

/// Starts one service, over and over if it must, hears what it says, and keeps descriptors for it from one start
/// to the next, as systemd does for a unit with `FileDescriptorStoreMax=`.
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
    most: usize,
    stop: AtomicBool,
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    messages: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    /// Keeps so many descriptors at most.
    ///
    /// # Errors
    /// Those of making a socket in the directory for temporary files.
    pub fn new(most: usize) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("manager-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // A name in the abstract namespace would not be seen from other network namespaces.
        let path = std::env::temp_dir().join(name);
        let socket = UnixDatagram::bind(&path)?;
        socket.set_read_timeout(Some(TICK))?;
        let shared = Arc::new(Shared { socket, most, stop: AtomicBool::new(false), heard: Mutex::default() });
        let listening = Arc::clone(&shared);
        let listener = Some(thread::spawn(move || listening.listen()));
        Ok(Self { path, shared, listener })
    }

    /// Starts the service in a namespace, and passes what is kept to it, except what is of no use any more.
    ///
    /// # Errors
    /// Those of [`Process::spawn_in`], and of copying a descriptor.
    pub fn start(&self, namespace: &Namespace, service: &Command) -> io::Result<Process> {
        let (names, descriptors) = self.to_be_passed()?;
        // The process that it becomes is the one whose id the variable holds.
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

    /// The names of all that is kept, in order.
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        self.drop_hung_up();
        let mut names: Vec<_> = self.shared.lock().kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// What the service said, message by message.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.shared.lock().messages.clone()
    }

    /// Closes all that is kept, as after a service was stopped.
    pub fn stopped(&self) {
        self.shared.lock().kept.clear();
    }

    fn to_be_passed(&self) -> io::Result<(Vec<String>, Vec<OwnedFd>)> {
        self.drop_hung_up();
        let heard = self.shared.lock();
        let names: Vec<_> = heard.kept.iter().map(|(name, _)| name.clone()).collect();
        let copies = heard.kept.iter().map(|(_, descriptor)| descriptor.try_clone());
        Ok((names, copies.collect::<io::Result<_>>()?))
    }

    /// What has an error or a hang-up is not kept (`FDPOLL` in `sd_notify(3)`).
    fn drop_hung_up(&self) {
        let is_of_use = |descriptor: &OwnedFd| !sys::has_hung_up(descriptor.as_fd()).unwrap_or(false);
        self.shared.lock().kept.retain(|(_, descriptor)| is_of_use(descriptor));
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(Err(_)) = self.listener.take().map(JoinHandle::join) {
            tracing::error!("the thread of a service manager has panicked");
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
                self.hear(message, descriptors);
            }
        }
    }

    fn hear(&self, message: String, descriptors: Vec<OwnedFd>) {
        let value = |key: &str| message.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let name = value("FDNAME").unwrap_or("stored").to_owned();
        let mut heard = self.lock();
        if value("FDSTOREREMOVE") == Some("1") {
            heard.kept.retain(|(kept, _)| *kept != name);
        } else if value("FDSTORE") == Some("1") {
            let room = self.most.saturating_sub(heard.kept.len());
            heard
                .kept
                .extend(descriptors.into_iter().take(room).map(|descriptor| (name.clone(), descriptor)));
        }
        heard.messages.push(message);
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
