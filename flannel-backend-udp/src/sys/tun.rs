//! Settings of a TUN queue (`drivers/net/tun.c`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

pub(crate) use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};

/// Sets which offloads the reader supports (`TUNSETOFFLOAD`, `TUN_F_*`).
pub(crate) fn set_offload(tun: BorrowedFd<'_>, features: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number, not a pointer, and the descriptor is open for as long as it is borrowed.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(features)) })
}

/// Sets the virtio header to little endian (`TUNSETVNETLE`).
pub(crate) fn set_little_endian(tun: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to an `int` that outlives the call, which the kernel reads.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETLE as _, &raw const on) })
}

/// Makes reads and writes non-blocking (`O_NONBLOCK`).
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: passes no pointers.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: passes no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
