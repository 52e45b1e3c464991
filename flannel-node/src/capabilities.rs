//! Whether the process may do what the daemon has to.

/// `CAP_NET_ADMIN` (`linux/capability.h`).
const NET_ADMIN: u32 = 12;

/// Checks that the process may change the network of its namespace. The error is one line for the operator.
pub fn check() -> Result<(), String> {
    // Where /proc cannot be read the kernel will say what is missing.
    if of(None).unwrap_or(true) {
        return Ok(());
    }
    Err("flanneld may not change the network: run it as root, or give it CAP_NET_ADMIN (in a systemd unit \
         AmbientCapabilities=CAP_NET_ADMIN, in Docker --cap-add=NET_ADMIN)"
        .to_owned())
}

/// Tells whether a process, or this one, may change the network of its namespace; `None` if that is not told.
pub fn of(process: Option<u32>) -> Option<bool> {
    let name = process.map_or_else(|| "thread-self".to_owned(), |id| id.to_string());
    let status = std::fs::read_to_string(format!("/proc/{name}/status")).ok()?;
    is_effective(&status, NET_ADMIN)
}

/// Reads a capability from the text of `/proc/PID/status` (proc_pid_status(5)); `None` if it is not told.
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
