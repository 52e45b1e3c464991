//! Descriptors that a service manager keeps from one start to the next: `FDSTORE=1` of `sd_notify(3)`, and
//! `sd_listen_fds(3)`.
//!
//! The manager keeps them while the daemon runs, after it was killed, and over a restart; after a stop it closes them
//! (`FileDescriptorStorePreserve=`, systemd.service(5)). What is deleted, such as a device, it drops by itself.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_core::DescriptorStore;
use tracing::{info, warn};

use super::{Notifier, descriptors};

/// Descriptors by name. Several may have the same one.
pub type PassedDescriptors = BTreeMap<String, Vec<OwnedFd>>;

/// What the service manager keeps for this daemon, and the way to it.
#[derive(Debug)]
pub struct FdStore {
    notifier: Notifier,
    kept: Mutex<PassedDescriptors>,
}

impl FdStore {
    /// Takes what the manager passed. Without `is_wanted`, and without a manager, there is no store, and what was passed
    /// is given up.
    pub fn open(is_wanted: bool, notifier: &Notifier, passed: PassedDescriptors) -> Option<Self> {
        if !passed.is_empty() {
            let names: Vec<_> = passed.keys().map(String::as_str).collect();
            info!("The service manager passed {}", names.join(", "));
        }
        let store = Self { notifier: notifier.clone(), kept: Mutex::new(passed) };
        if is_wanted && notifier.is_there() {
            return Some(store);
        }
        if is_wanted {
            warn!("-keep-udp-device has no effect: NOTIFY_SOCKET is not set, so nobody could keep it");
        }
        store.close_all();
        None
    }

    fn close_all(&self) {
        let names: Vec<String> = self.lock().keys().cloned().collect();
        for name in names {
            if let Err(error) = self.forget(&name) {
                warn!("The service manager cannot be told to close {name}: {error}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PassedDescriptors> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DescriptorStore for FdStore {
    fn kept(&self, name: &str) -> Vec<OwnedFd> {
        let kept = self.lock();
        let copies = kept.get(name).into_iter().flatten().map(OwnedFd::try_clone);
        copies.filter_map(Result::ok).collect()
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.forget(name)?;
        let copy = descriptor.try_clone_to_owned()?;
        self.notifier.send_with(&format!("FDSTORE=1\nFDNAME={name}\n"), copy.as_fd())?;
        self.lock().insert(name.to_owned(), vec![copy]);
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        if self.lock().remove(name).is_some() {
            self.notifier.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"))?;
        }
        Ok(())
    }

    fn clear(&self) {
        self.close_all();
    }
}

/// Takes the descriptors that the service manager passed to this process, whose id is given. To be called before
/// anything is opened.
pub fn passed(process: u32, environment: impl Fn(&str) -> Option<OsString>) -> PassedDescriptors {
    let variable = |name: &str| environment(name)?.into_string().ok();
    let names = names(process, variable);
    let mut passed = PassedDescriptors::new();
    for (name, descriptor) in names.iter().zip(descriptors::inherited(names.len())) {
        // Others belong to sockets that a unit file names, and nobody here asked for any.
        if let Some(descriptor) = descriptor.filter(|_| name.starts_with(PREFIX)) {
            passed.entry(name.clone()).or_default().push(descriptor);
        }
    }
    passed
}

/// What the names of all that is kept begin with.
const PREFIX: &str = "flannel-";

/// More than this nobody passes; a number that is far too large must not cost time.
const MAX_PASSED: usize = 1024;

/// The names of the descriptors that were passed, from the first one on; none if they are for another process.
fn names(process: u32, variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let number = |name: &str| variable(name)?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(process) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").and_then(|count| usize::try_from(count).ok());
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    names.take(count.unwrap_or(0).min(MAX_PASSED)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_of(variables: &[(&str, &str)]) -> Vec<String> {
        let value = |name: &str| variables.iter().find(|(variable, _)| *variable == name);
        names(42, |name| value(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_names_are_those_of_the_descriptors_in_their_order() {
        let variables = [("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "flannel-tun:other")];
        assert_eq!(names_of(&variables), ["flannel-tun", "other"]);
        assert_eq!(
            names_of(&[variables[0], ("LISTEN_FDS", "3"), variables[2]]),
            ["flannel-tun", "other", ""]
        );
        assert_eq!(names_of(&[variables[0], ("LISTEN_FDS", "1"), variables[2]]), ["flannel-tun"]);
    }

    #[test]
    fn what_is_for_another_process_or_cannot_be_read_is_not_taken() {
        let variables =
            |pid, count| names_of(&[("LISTEN_PID", pid), ("LISTEN_FDS", count), ("LISTEN_FDNAMES", "a")]);
        assert_eq!(variables("42", "1"), ["a"]);
        for (pid, count) in [("43", "1"), ("", "1"), ("42", "-1"), ("42", "x"), ("42", "0")] {
            assert!(variables(pid, count).is_empty(), "{pid} {count}");
        }
        assert_eq!(variables("42", "4294967295").len(), MAX_PASSED);
        assert!(names_of(&[]).is_empty());
    }
}
