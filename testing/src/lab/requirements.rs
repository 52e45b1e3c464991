//! Checks by trial what a lab needs of the kernel and this process, with the fix for each missing requirement.

use flannel_netlink::{Error, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan, VethPeer};
use std::fmt;
use std::fs;
use std::sync::OnceLock;

/// Capabilities by their bit in `/proc/self/status` (`linux/capability.h`), and their purpose.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "to create links and routes"),
    (13, "CAP_NET_RAW", "to ping and to capture"),
    (21, "CAP_SYS_ADMIN", "to create namespaces"),
];

/// Checks whether a lab can be created here, by trying each operation in a temporary namespace.
///
/// # Errors
/// Lists all missing requirements, one line each, with the fix.
pub fn check_requirements() -> Result<(), Missing> {
    let mut missing = missing_capabilities();
    if missing.is_empty() {
        match Namespace::create() {
            Ok(namespace) => missing.extend(missing_in(&namespace)),
            Err(error) => missing.push(format!(
                "no network namespace can be created ({error}): see `sysctl user.max_net_namespaces`, and whether a \
                 container's seccomp profile forbids `unshare`"
            )),
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Missing { missing }) }
}

/// Checks like [`check_requirements`], but only once per process.
pub(super) fn check_once() -> Result<(), Missing> {
    static ANSWER: OnceLock<Result<(), Missing>> = OnceLock::new();
    ANSWER.get_or_init(check_requirements).clone()
}

/// The requirements of a lab that the machine or this process lacks.
#[derive(Clone, Eq, PartialEq, thiserror::Error)]
pub struct Missing {
    missing: Vec<String>,
}

impl Missing {
    /// Returns one line per missing requirement.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.missing.iter().map(String::as_str)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no lab can be created here:")?;
        self.missing.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Formats like the message, because tests see it through `unwrap`.
impl fmt::Debug for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn missing_capabilities() -> Vec<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = effective_capabilities(&status);
    let lacks = |bit: u32| effective.is_some_and(|set| set >> bit & 1 == 0);
    CAPABILITIES
        .iter()
        .filter(|(bit, ..)| lacks(*bit))
        .map(|(_, name, purpose)| {
            format!("{name} {purpose}: run as root (sudo), or in a container with --privileged")
        })
        .collect()
}

/// Parses the effective capabilities of a `/proc/PID/status` (`proc_pid_status(5)`).
fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn missing_in(namespace: &Namespace) -> Vec<String> {
    let mut missing = Vec::new();
    if let Err(error) = namespace.write_sysctl("net/ipv4/ip_forward", "1") {
        missing.push(format!(
            "writable /proc/sys/net ({error}): in a container, run with --privileged or mount /proc/sys read-write"
        ));
    }
    match Netlink::open_in(namespace) {
        Ok(mut netlink) => missing.extend(kinds().iter().filter_map(|link| missing_kind(&mut netlink, link))),
        Err(error) => {
            missing.push(format!("a netlink socket ({error}): check whether a sandbox forbids AF_NETLINK"))
        }
    }
    missing
}

/// A link of each kind that a lab and its overlay use.
fn kinds() -> [(&'static str, &'static str, NewLink); 3] {
    let peer = VethPeer { name: "b".to_owned(), mac: None, namespace: None };
    let vxlan = NewVxlan { vni: 1, port: Some(8472), ..NewVxlan::default() };
    [
        ("veth", "CONFIG_VETH", NewLink::new("a", NewLinkKind::Veth(peer))),
        ("bridge", "CONFIG_BRIDGE", NewLink::new("c", NewLinkKind::Bridge)),
        ("vxlan", "CONFIG_VXLAN", NewLink::new("d", NewLinkKind::Vxlan(vxlan))),
    ]
}

fn missing_kind(netlink: &mut Netlink, (kind, option, link): &(&str, &str, NewLink)) -> Option<String> {
    let error = netlink.create_link(link).err()?;
    let why = if let Error::Kernel { source, .. } = &error { source.to_string() } else { error.to_string() };
    Some(format!("links of kind {kind} ({why}): `modprobe {kind}`, or a kernel with {option}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_missing_requirements_are_listed() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nSeccomp:\t2\n";
        assert_eq!(effective_capabilities(status), Some(0xa804_25fb));
        assert_eq!(effective_capabilities("nothing"), None);
        let missing = Missing { missing: vec!["one: do this".to_owned(), "two: do that".to_owned()] };
        assert_eq!(missing.to_string(), "no lab can be created here:\n  one: do this\n  two: do that");
        assert_eq!(missing.lines().count(), 2);
    }
}
