//! The system call that the standard library does not wrap.
#![allow(unsafe_code, reason = "the standard library kills single processes only")]

/// Kills every process of the group that `leader` leads (`kill(2)`). The caller has not reaped the leader yet, so the
/// number is nobody else's. An error means that nobody is left.
pub(crate) fn kill_group(leader: u32) {
    let Ok(leader) = libc::pid_t::try_from(leader) else { return };
    // Groups 0 and 1 are the own one and everybody (kill(2)).
    if leader > 1 {
        // SAFETY: takes no memory.
        unsafe {
            libc::kill(-leader, libc::SIGKILL);
        }
    }
}
