//! How much the scheduler favours a thread (`setpriority(2)`).

use std::io;

/// Sets the nice value of the calling thread, to which it applies alone on Linux (sched(7)).
pub(crate) fn set_nice(nice: libc::c_int) -> io::Result<()> {
    // SAFETY: takes no memory; 0 stands for the calling thread.
    let answer = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
