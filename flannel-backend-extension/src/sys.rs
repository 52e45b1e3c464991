//! The one system call that the standard library doesn't wrap.
#![allow(unsafe_code, reason = "the standard library can't kill a process group")]

/// Kills every process of the group that `leader` leads (`kill(2)`). The caller hasn't reaped the leader yet, so its PID
/// can't have been reused. An error means that no process is left.
pub(crate) fn kill_group(leader: u32) {
    let Ok(leader) = libc::pid_t::try_from(leader) else { return };
    // -0 is the caller's own group and -1 is every process (kill(2)).
    if leader > 1 {
        // SAFETY: passes no pointers.
        unsafe {
            libc::kill(-leader, libc::SIGKILL);
        }
    }
}
