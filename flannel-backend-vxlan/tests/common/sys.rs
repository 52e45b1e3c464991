//! The one system call of the tests.
#![allow(unsafe_code, reason = "the standard library knows no capabilities")]

/// `_LINUX_CAPABILITY_VERSION_3`, `linux/capability.h`.
const VERSION: u32 = 0x2008_0522;

/// Leaves the calling thread only the given capabilities (bits of `linux/capability.h`), for as long as it lives.
pub(crate) fn keep_capabilities(bits: &[u32]) {
    let low = bits.iter().fold(0, |set, bit| set | 1 << bit);
    let header: [u32; 2] = [VERSION, 0];
    // Effective, permitted and inheritable, for the low and the high half of all capabilities.
    let data: [u32; 6] = [low, low, 0, 0, 0, 0];
    // SAFETY: both pointers are to structures of the size that this version has (capset(2)), and live through the
    // call; nothing but the capabilities of this thread changes.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
