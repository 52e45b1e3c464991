//! The file descriptor store of the service manager: `FDSTORE=1` of `sd_notify(3)`, and `sd_listen_fds(3)`.
//!
//! The manager keeps the descriptors while the service runs, after it crashed and during a restart; after a stop it closes
//! them (`FileDescriptorStorePreserve=`, systemd.service(5)). It drops those whose object, such as a device, was deleted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_core::DescriptorStore;
use tracing::{info, warn};

use super::{Notifier, descriptors};

/// The descriptors that the service manager passed to the process, by name. Several may have the same name.
pub type PassedDescriptors = BTreeMap<String, Vec<OwnedFd>>;

/// A descriptor store that the service manager keeps.
#[derive(Debug)]
pub struct FdStore {
    notifier: Notifier,
    stored: Mutex<PassedDescriptors>,
}

impl FdStore {
    /// Creates a store with the descriptors that the manager passed.
    #[must_use]
    pub fn new(notifier: &Notifier, passed: PassedDescriptors) -> Self {
        if !passed.is_empty() {
            let names: Vec<_> = passed.keys().map(String::as_str).collect();
            info!("The service manager passed the descriptors {}", names.join(", "));
        }
        Self { notifier: notifier.clone(), stored: Mutex::new(passed) }
    }

    fn lock(&self) -> MutexGuard<'_, PassedDescriptors> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DescriptorStore for FdStore {
    fn kept(&self, name: &str) -> Vec<OwnedFd> {
        let stored = self.lock();
        let copies = stored.get(name).into_iter().flatten().map(OwnedFd::try_clone);
        copies.filter_map(Result::ok).collect()
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.remove(name)?;
        let copy = descriptor.try_clone_to_owned()?;
        self.notifier.send_with(&format!("FDSTORE=1\nFDNAME={name}\n"), copy.as_fd())?;
        self.lock().insert(name.to_owned(), vec![copy]);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if self.lock().remove(name).is_some() {
            self.notifier.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"))?;
        }
        Ok(())
    }

    fn clear(&self) {
        let names: Vec<String> = self.lock().keys().cloned().collect();
        for name in names {
            if let Err(error) = self.remove(&name) {
                warn!("Failed to remove {name} from the service manager's descriptor store: {error}");
            }
        }
    }
}

/// Takes the descriptors that the service manager passed to the process with this ID. Call it before anything is opened.
pub fn passed_descriptors(process: u32, environment: impl Fn(&str) -> Option<OsString>) -> PassedDescriptors {
    let variable = |name: &str| environment(name)?.into_string().ok();
    let names = names(process, variable);
    let mut passed = PassedDescriptors::new();
    for (name, descriptor) in names.iter().zip(descriptors::inherited(names.len())) {
        // Others belong to sockets of the unit file, and are closed.
        if let Some(descriptor) = descriptor.filter(|_| name.starts_with(PREFIX)) {
            passed.entry(name.clone()).or_default().push(descriptor);
        }
    }
    passed
}

/// The prefix of the names of all stored descriptors.
const PREFIX: &str = "flannel-";

/// The largest number of passed descriptors, so that an absurd one costs no time.
const MAX_PASSED: usize = 1024;

/// Returns the names of the passed descriptors in their order; none if they are for another process.
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
    fn the_names_are_in_the_order_of_the_descriptors() {
        let variables = [("LISTEN_PID", "42"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "flannel-tun:other")];
        assert_eq!(names_of(&variables), ["flannel-tun", "other"]);
        assert_eq!(
            names_of(&[variables[0], ("LISTEN_FDS", "3"), variables[2]]),
            ["flannel-tun", "other", ""]
        );
        assert_eq!(names_of(&[variables[0], ("LISTEN_FDS", "1"), variables[2]]), ["flannel-tun"]);
    }

    #[test]
    fn descriptors_for_another_process_and_invalid_counts_are_ignored() {
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
