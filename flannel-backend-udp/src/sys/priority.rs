//! Thread priority (`setpriority(2)`).

use std::io;

/// Sets the nice value of the calling thread only, as Linux does (sched(7)).
pub(crate) fn set_nice(nice: libc::c_int) -> io::Result<()> {
    // SAFETY: passes no pointers; 0 is the calling thread.
    let answer = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
