//! The protocol between a service and its service manager, such as systemd: `sd_notify(3)` and `sd_listen_fds(3)`.
//!
//! A unit of `Type=notify` has started once the service notifies its manager; the units after it, such as container
//! runtimes, wait for that.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

mod descriptors;
mod fd_store;
mod reporter;

pub use fd_store::{FdStore, PassedDescriptors, passed_descriptors};
pub use reporter::report_status;

/// How long a send waits while the socket's queue is full. A service manager that works reads at once.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends notifications to the service manager. The default one has no manager and sends nothing.
#[derive(Clone, Debug, Default)]
pub struct Notifier(Option<SocketAddr>);

impl Notifier {
    /// Creates a notifier from the value of `NOTIFY_SOCKET`: a path, or `@` and a name in the abstract namespace. Without a
    /// value, or with an empty one, there is no manager.
    ///
    /// # Errors
    ///
    /// An I/O error if the value isn't an address.
    pub fn new(notify_socket: Option<&OsStr>) -> io::Result<Self> {
        let address = match notify_socket.map(OsStr::as_bytes) {
            None | Some([]) => None,
            Some([b'@', name @ ..]) => Some(SocketAddr::from_abstract_name(name)?),
            Some(path) => Some(SocketAddr::from_pathname(OsStr::from_bytes(path))?),
        };
        Ok(Self(address))
    }

    /// Creates a notifier from the environment variable `NOTIFY_SOCKET`.
    ///
    /// # Errors
    ///
    /// An I/O error if the value isn't an address.
    pub fn from_env() -> io::Result<Self> {
        Self::new(std::env::var_os("NOTIFY_SOCKET").as_deref())
    }

    /// Returns whether there is a service manager.
    #[must_use]
    pub fn has_manager(&self) -> bool {
        self.0.is_some()
    }

    /// Notifies the manager that the service has started, or has applied a reload, and sets its status line.
    ///
    /// # Errors
    ///
    /// An I/O error if the manager cannot be reached; the same holds for the other notifications.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&format!("READY=1\n{}", status_assignment(status)))
    }

    /// Notifies the manager that the service reloads its configuration; [`ready`](Self::ready) ends the reload.
    ///
    /// # Errors
    ///
    /// An I/O error if the manager cannot be reached.
    pub fn reloading(&self) -> io::Result<()> {
        // systemd relates this notification to its own request by the time (sd_notify(3)).
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", descriptors::monotonic_time().as_micros()))
    }

    /// Notifies the manager that the service is about to end.
    ///
    /// # Errors
    ///
    /// An I/O error if the manager cannot be reached.
    pub fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1\n")
    }

    /// Sets the status line.
    ///
    /// # Errors
    ///
    /// An I/O error if the manager cannot be reached.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&status_assignment(status))
    }

    /// Resets the manager's watchdog.
    ///
    /// # Errors
    ///
    /// An I/O error if the manager cannot be reached.
    pub fn watchdog(&self) -> io::Result<()> {
        self.send("WATCHDOG=1\n")
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let Some(socket) = self.connect()? else { return Ok(()) };
        socket.send(message.as_bytes()).map(drop)
    }

    /// Sends a datagram with a copy of a descriptor.
    fn send_with(&self, message: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Some(socket) = self.connect()? else { return Ok(()) };
        descriptors::send(&socket, message.as_bytes(), descriptor)
    }

    fn connect(&self) -> io::Result<Option<UnixDatagram>> {
        let Some(address) = &self.0 else { return Ok(None) };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        socket.connect_addr(address)?;
        Ok(Some(socket))
    }
}

/// Returns the interval at which to reset the watchdog, from the values of `WATCHDOG_USEC` and `WATCHDOG_PID`: half of the
/// manager's timeout, as sd_watchdog_enabled(3) recommends. `None` if there is no watchdog, or one for another process.
fn watchdog_interval(usec: Option<&OsStr>, pid: Option<&OsStr>) -> Option<Duration> {
    let number = |text: &OsStr| text.to_str()?.parse::<u64>().ok();
    if pid.is_some_and(|pid| number(pid) != Some(std::process::id().into())) {
        return None;
    }
    let usec = number(usec?)?;
    (usec > 0).then(|| Duration::from_micros(usec) / 2)
}

/// Writes a status as one assignment. A line break in it would start a second assignment.
fn status_assignment(status: &str) -> String {
    format!("STATUS={}\n", status.replace(char::is_control, " "))
}

/// Logs a notification that failed.
pub(crate) fn log_failure(result: io::Result<()>) {
    if let Err(error) = result {
        warn!("Failed to notify the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Receives a datagram.
    fn received(manager: &UnixDatagram) -> String {
        manager.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        let mut buf = [0; 256];
        let n = manager.recv(&mut buf).expect("a datagram");
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }

    #[test]
    fn a_manager_at_a_path_receives_each_notification_as_one_datagram() {
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
    fn a_manager_in_the_abstract_namespace_is_notified() {
        let name = format!("flanneld-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bound");
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}")))).expect("a name");
        notifier.ready("up").expect("sent");
        assert_eq!(received(&manager), "READY=1\nSTATUS=up\n");
    }

    #[test]
    fn the_watchdog_interval_is_half_of_the_timeout() {
        let (own, usec) = (std::process::id().to_string(), Some(OsStr::new("30000000")));
        let half = Some(Duration::from_secs(15));
        assert_eq!(watchdog_interval(usec, None), half);
        assert_eq!(watchdog_interval(usec, Some(OsStr::new(&own))), half);
        assert_eq!(
            watchdog_interval(usec, Some(OsStr::new("1"))),
            None,
            "the watchdog is for another process"
        );
        for wrong in [None, Some(OsStr::new("")), Some(OsStr::new("0")), Some(OsStr::new("x"))] {
            assert_eq!(watchdog_interval(wrong, None), None);
        }
    }

    #[test]
    fn a_status_cannot_contain_another_assignment() {
        assert_eq!(status_assignment("peer said\nMAINPID=1"), "STATUS=peer said MAINPID=1\n");
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        for socket in [None, Some(OsStr::new(""))] {
            let notifier = Notifier::new(socket).expect("none");
            assert!(notifier.0.is_none());
            notifier.ready("up").expect("nothing to send");
        }
    }

    #[test]
    fn a_missing_manager_is_an_error() {
        let notifier = Notifier::new(Some(OsStr::new("/nonexistent/notify"))).expect("a path");
        assert_eq!(notifier.ready("up").expect_err("no manager").kind(), io::ErrorKind::NotFound);
        assert!(Notifier::new(Some(OsStr::new(&"x".repeat(200)))).is_err(), "longer than sun_path");
    }
}
