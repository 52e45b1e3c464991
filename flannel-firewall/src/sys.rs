//! System calls that the standard library does not wrap.
#![allow(unsafe_code, reason = "tables of the legacy iptables can only be read by socket options")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Opens a datagram socket of an internet family, in the namespace of the calling thread (`socket(2)`).
pub(crate) fn datagram_socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no memory.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Reads a socket option into a buffer, whose contents the kernel may read as a request (`getsockopt(2)`). Returns the
/// number of bytes written.
pub(crate) fn read_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let mut length =
        libc::socklen_t::try_from(buffer.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `buffer` is valid for reads and writes of `length` bytes, and `length` for both, during the call.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    })?;
    Ok(buffer.len().min(length as usize))
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
