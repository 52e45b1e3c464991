//! The capabilities that an agent needs.

/// `CAP_NET_ADMIN` (`linux/capability.h`).
const NET_ADMIN: u32 = 12;

/// Checks that this process has `CAP_NET_ADMIN`.
///
/// # Errors
///
/// One line that names the fix.
pub fn check() -> Result<(), String> {
    // Without /proc the kernel will report what is missing.
    if has_net_admin(None).unwrap_or(true) {
        return Ok(());
    }
    Err("this process lacks CAP_NET_ADMIN: run it as root, or grant the capability (in a systemd unit \
         AmbientCapabilities=CAP_NET_ADMIN, in Docker --cap-add=NET_ADMIN)"
        .to_owned())
}

/// Returns whether a process, by default this one, has `CAP_NET_ADMIN`; `None` if `/proc` does not tell.
pub fn has_net_admin(process: Option<u32>) -> Option<bool> {
    let name = process.map_or_else(|| "thread-self".to_owned(), |id| id.to_string());
    let status = std::fs::read_to_string(format!("/proc/{name}/status")).ok()?;
    is_effective(&status, NET_ADMIN)
}

/// Parses a capability from `/proc/PID/status` (proc_pid_status(5)).
fn is_effective(status: &str, capability: u32) -> Option<bool> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let bits = u64::from_str_radix(bits.trim(), 16).ok()?;
    Some(bits >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_read_from_the_status_of_the_process() {
        assert_eq!(is_effective("Name:\tx\nCapEff:\t000001ffffffffff\n", NET_ADMIN), Some(true));
        assert_eq!(is_effective("CapEff:\t0000000000001000\n", NET_ADMIN), Some(true));
        assert_eq!(is_effective("CapEff:\t0000000000002000\n", NET_ADMIN), Some(false));
        assert_eq!(is_effective("CapEff:\todd\n", NET_ADMIN), None);
        assert_eq!(is_effective("", NET_ADMIN), None);
    }
}
