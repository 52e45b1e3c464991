//! What a service manager is told about the daemon, in the protocol of `sd_notify(3)`.
//!
//! A unit of `Type=notify` counts as started when it says so; the units after it (container runtimes)
//! wait for that.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

mod descriptors;
mod fd_store;
mod status;

pub use fd_store::{FdStore, PassedDescriptors, passed};
pub use status::{notified, report as report_status};

/// How long a full socket may hold up the daemon. A manager that works reads at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the service manager, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Option<SocketAddr>);

impl Notifier {
    /// Finds the manager from the value of `NOTIFY_SOCKET`: a path, or `@` and a name in the abstract
    /// namespace. Without a value, or with an empty one, there is none and telling it does nothing.
    pub fn new(notify_socket: Option<&OsStr>) -> io::Result<Self> {
        let address = match notify_socket.map(OsStr::as_bytes) {
            None | Some([]) => None,
            Some([b'@', name @ ..]) => Some(SocketAddr::from_abstract_name(name)?),
            Some(path) => Some(SocketAddr::from_pathname(OsStr::from_bytes(path))?),
        };
        Ok(Self(address))
    }

    /// Tells whether there is a manager.
    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Tells the manager that the daemon is started, and what it does now.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\n{}", status_line(status)))
    }

    /// Tells the manager that the daemon takes in another configuration; `ready` says when that is done.
    pub fn reloading(&self) -> io::Result<()> {
        // systemd orders by this what it asked for and what it hears (sd_notify(3)).
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", descriptors::monotonic().as_micros()))
    }

    /// Tells the manager that the daemon is about to end.
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1\n")
    }

    /// Tells the manager what the daemon does now.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&status_line(status))
    }

    /// Tells the manager that the daemon lives.
    pub fn alive(&self) -> io::Result<()> {
        self.send("WATCHDOG=1\n")
    }

    /// Sends one datagram.
    pub fn send(&self, message: &str) -> io::Result<()> {
        let Some(socket) = self.connect()? else { return Ok(()) };
        socket.send(message.as_bytes()).map(drop)
    }

    /// Sends one datagram with a copy of a descriptor.
    pub fn send_with(&self, message: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Some(socket) = self.connect()? else { return Ok(()) };
        descriptors::send(&socket, message.as_bytes(), descriptor)
    }

    fn connect(&self) -> io::Result<Option<UnixDatagram>> {
        let Some(address) = &self.0 else { return Ok(None) };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.connect_addr(address)?;
        Ok(Some(socket))
    }
}

/// How often the manager wants to hear that the daemon lives, from the values of `WATCHDOG_USEC` and `WATCHDOG_PID`: half
/// of the time after which it would take it for dead, as sd_watchdog_enabled(3) advises. None if it does not want to, or
/// from another process.
pub fn watchdog(usec: Option<&OsStr>, pid: Option<&OsStr>) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    if pid.is_some_and(|pid| number(pid) != Some(std::process::id().into())) {
        return None;
    }
    let usec = number(usec?)?;
    (usec > 0).then(|| Duration::from_micros(usec) / 2)
}

/// A status as one assignment; a line break inside it would begin another one.
fn status_line(status: &str) -> String {
    format!("STATUS={}\n", status.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The next datagram that `manager` receives.
    fn received(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let mut buf = [0; 256];
        let n = manager.recv(&mut buf).expect("a datagram");
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    #[test]
    fn a_manager_at_a_path_hears_every_state_as_one_datagram() {
        let path: PathBuf = std::env::temp_dir().join(format!("notify-{}", std::process::id()));
        let manager = UnixDatagram::bind(&path).expect("bound");
        let notifier = Notifier::new(Some(path.as_os_str())).expect("a path");
        notifier.ready("10.1.2.0/24, 3 peers").expect("sent");
        notifier.stopping().expect("sent");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(received(&manager), "READY=1\nSTATUS=10.1.2.0/24, 3 peers\n");
        assert_eq!(received(&manager), "STOPPING=1\n");
    }

    #[test]
    fn a_manager_in_the_abstract_namespace_hears_it_too() {
        let name = format!("flanneld-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bound");
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}")))).expect("a name");
        notifier.ready("up").expect("sent");
        assert_eq!(received(&manager), "READY=1\nSTATUS=up\n");
    }

    #[test]
    fn the_manager_hears_twice_as_often_as_it_must() {
        let (own, usec) = (std::process::id().to_string(), Some(OsStr::new("30000000")));
        let half = Some(Duration::from_secs(15));
        assert_eq!(watchdog(usec, None), half);
        assert_eq!(watchdog(usec, Some(OsStr::new(&own))), half);
        assert_eq!(watchdog(usec, Some(OsStr::new("1"))), None, "it is another process that shall tell");
        for wrong in [None, Some(OsStr::new("")), Some(OsStr::new("0")), Some(OsStr::new("x"))] {
            assert_eq!(watchdog(wrong, None), None);
        }
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_state() {
        assert_eq!(status_line("peer said\nMAINPID=1"), "STATUS=peer said MAINPID=1\n");
    }

    #[test]
    fn without_a_manager_nothing_is_sent_and_nothing_fails() {
        for socket in [None, Some(OsStr::new(""))] {
            let notifier = Notifier::new(socket).expect("none");
            assert!(notifier.0.is_none());
            notifier.ready("up").expect("nothing to do");
        }
    }

    #[test]
    fn a_manager_that_went_away_is_an_error_to_report() {
        let notifier = Notifier::new(Some(OsStr::new("/nonexistent/notify"))).expect("a path");
        assert_eq!(notifier.ready("up").expect_err("nobody").kind(), io::ErrorKind::NotFound);
        assert!(Notifier::new(Some(OsStr::new(&"x".repeat(200)))).is_err(), "longer than sun_path");
    }
}
