//! Forwarding between the tunnel, the interfaces and the pods, for one family.
//!
//! To switch it on is the host's decision, which container runtimes make; with IPv6 it changes what the host takes from
//! routers. So where it is off it is only reported; but where it was on and is switched off, all pods of the host
//! become unreachable, and it is switched on again.

use flannel_core::{ObjectFailure, SyncReport};
use flannel_netlink::{IpFamily, Namespace, Notification};

use crate::tables::Kernel;

#[derive(Debug)]
pub struct Forwarding {
    family: IpFamily,
    kernel: Kernel,
    namespace: Namespace,
    /// Whether it was on since this process began.
    was_on: bool,
    in_doubt: bool,
    /// Whether it was said that it is off.
    said: bool,
}

impl Forwarding {
    pub fn new(family: IpFamily, kernel: Kernel, namespace: Namespace) -> Self {
        Self { family, kernel, namespace, was_on: false, in_doubt: true, said: false }
    }

    pub fn distrust(&mut self) {
        self.in_doubt = true;
    }

    /// Takes in that it was switched, for all links or for the tunnel's device.
    pub fn notice(&mut self, notice: &Notification, device: Option<u32>) -> Option<String> {
        let Notification::Forwarding { family, index, on } = notice else { return None };
        if *family != self.family || (index.is_some() && *index != device) {
            return None;
        }
        let is_off = self.was_on && !on;
        self.was_on |= *on && index.is_none();
        self.in_doubt |= is_off;
        is_off.then(|| format!("forwarding of {family} was switched off"))
    }

    /// Looks, if in doubt, and switches on again what was on, for all links and for the tunnel's device.
    pub fn sync(&mut self, device: Option<(&str, u32)>) -> SyncReport {
        let mut report = SyncReport::default();
        if !std::mem::take(&mut self.in_doubt) {
            return report;
        }
        let (all, of_one) = match self.family {
            IpFamily::V4 => ("net/ipv4/ip_forward", "net/ipv4/conf"),
            IpFamily::V6 => ("net/ipv6/conf/all/forwarding", "net/ipv6/conf"),
        };
        let (family, kernel) = (self.family, self.kernel.clone());
        let forwards = |index| kernel.lock().is_forwarding(family, index);
        match forwards(None) {
            Ok(false) if self.was_on => self.switch_on(all, &mut report),
            Ok(false) => return self.say(all, report),
            Ok(true) => self.was_on = true,
            // It cannot be told, so nothing is done about it.
            Err(_) => return report,
        }
        // A device can be left out by itself.
        if let Some((device, index)) = device
            && matches!(forwards(Some(index)), Ok(false))
        {
            self.switch_on(&format!("{of_one}/{device}/forwarding"), &mut report);
        }
        report
    }

    fn switch_on(&self, name: &str, report: &mut SyncReport) {
        report.drifted += 1;
        match self.namespace.write_sysctl(name, "1") {
            Ok(()) => report.written += 1,
            Err(error) => {
                let object = dotted(name);
                let reason = format!(
                    "it was switched off, so that no pod of this host is reached, and cannot be switched on again \
                     ({error}); do it with: sysctl -w {object}=1"
                );
                report.failed.push(ObjectFailure::new(object, reason));
            }
        }
    }

    fn say(&mut self, name: &str, report: SyncReport) -> SyncReport {
        if !std::mem::replace(&mut self.said, true) {
            let name = dotted(name);
            tracing::warn!(
                "{name} is off: no pod of this host is reached by others until a container runtime or you switch it on \
                 (sysctl -w {name}=1)"
            );
        }
        report
    }
}

/// The name of a setting as people write it.
fn dotted(name: &str) -> String {
    // A device may have a dot in its name, which sysctl(8) wants as a slash then.
    name.split('/').map(|part| part.replace('.', "/")).collect::<Vec<_>>().join(".")
}
