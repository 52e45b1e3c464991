//! The system call of the tests.
#![allow(unsafe_code, reason = "the C library's setresuid changes all threads, the system call one")]

/// Drops the capabilities of the calling thread.
pub(crate) fn become_ordinary_user() {
    const NOBODY: libc::c_long = 65_534;
    // SAFETY: passes no memory; changes nothing but the credentials of this thread.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
