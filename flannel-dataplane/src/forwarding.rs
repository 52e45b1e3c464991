//! IP forwarding between the tunnel, the interfaces and the pods, in one family.
//!
//! Enabling forwarding is the host's decision, usually made by the container runtime; in IPv6 it also changes how the
//! host treats router advertisements. So where forwarding is off, a warning is logged and nothing else happens. But when
//! forwarding was on and is then disabled, all pods of the host become unreachable, and it is enabled again.

use flannel_core::{ObjectFailure, SyncReport};
use flannel_netlink::{IpFamily, Namespace, Notification};

use crate::netlink::SharedNetlink;

/// Keeps IP forwarding enabled, in one family.
#[derive(Debug)]
pub struct Forwarding {
    family: IpFamily,
    netlink: SharedNetlink,
    namespace: Namespace,
    /// Whether forwarding was on at any time since the start.
    was_on: bool,
    is_stale: bool,
    /// Whether the warning was logged.
    has_warned: bool,
}

impl Forwarding {
    /// Describes forwarding of a family in a namespace.
    #[must_use]
    pub fn new(family: IpFamily, netlink: SharedNetlink, namespace: Namespace) -> Self {
        Self { family, netlink, namespace, was_on: false, is_stale: true, has_warned: false }
    }

    /// Makes the next pass read the settings again.
    pub fn mark_stale(&mut self) {
        self.is_stale = true;
    }

    /// Handles a notification about the setting for all links or for the tunnel device, and returns what changed.
    pub fn handle(&mut self, notification: &Notification, device: Option<u32>) -> Option<String> {
        let Notification::Forwarding { family, index, on } = notification else { return None };
        if *family != self.family || (index.is_some() && *index != device) {
            return None;
        }
        let was_disabled = self.was_on && !on;
        self.was_on |= *on && index.is_none();
        self.is_stale |= was_disabled;
        was_disabled.then(|| format!("{family} forwarding was disabled"))
    }

    /// Reads the settings if they are stale, and enables what was enabled before, for all links and for the tunnel
    /// device.
    pub fn sync(&mut self, device: Option<(&str, u32)>) -> SyncReport {
        let mut report = SyncReport::default();
        if !std::mem::take(&mut self.is_stale) {
            return report;
        }
        let (all, per_device) = match self.family {
            IpFamily::V4 => ("net/ipv4/ip_forward", "net/ipv4/conf"),
            IpFamily::V6 => ("net/ipv6/conf/all/forwarding", "net/ipv6/conf"),
        };
        let (family, netlink) = (self.family, self.netlink.clone());
        let forwards = |index| netlink.lock().is_forwarding(family, index);
        match forwards(None) {
            Ok(false) if self.was_on => self.enable(all, &mut report),
            Ok(false) => {
                self.warn_disabled(all);
                return report;
            }
            Ok(true) => self.was_on = true,
            // The state is unknown: change nothing.
            Err(_) => return report,
        }
        if let Some((device, index)) = device
            && matches!(forwards(Some(index)), Ok(false))
        {
            self.enable(&format!("{per_device}/{device}/forwarding"), &mut report);
        }
        report
    }

    fn enable(&self, sysctl: &str, report: &mut SyncReport) {
        report.drifted += 1;
        match self.namespace.write_sysctl(sysctl, "1") {
            Ok(()) => report.written += 1,
            Err(error) => {
                let object = sysctl_name(sysctl);
                let reason = format!(
                    "forwarding was disabled and cannot be enabled again: {error}; no pod of this host is reachable \
                     until you run: sysctl -w {object}=1"
                );
                report.failed.push(ObjectFailure::new(object, reason));
            }
        }
    }

    fn warn_disabled(&mut self, sysctl: &str) {
        if !std::mem::replace(&mut self.has_warned, true) {
            let name = sysctl_name(sysctl);
            tracing::warn!(
                "{name} is off; other hosts cannot reach the pods of this host until a container runtime or an \
                 administrator enables it (sysctl -w {name}=1)"
            );
        }
    }
}

/// Returns the name of a setting in the notation of sysctl(8), which writes a dot in a device name as a slash.
fn sysctl_name(path: &str) -> String {
    path.split('/').map(|part| part.replace('.', "/")).collect::<Vec<_>>().join(".")
}
