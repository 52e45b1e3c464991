//! `poll(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// The readiness of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Readable, or with a pending error.
    pub(crate) is_readable: bool,
    /// Closed: the socket was shut down, or the other end of the pipe closed.
    pub(crate) is_over: bool,
}

/// Waits until a descriptor is readable, has an error or hangs up, at most for `limit` if there is one. A missing
/// descriptor never becomes ready.
pub(crate) fn wait_readable<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[Ready; N]> {
    // The kernel ignores negative descriptors (poll(2)).
    let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut fds = descriptors.map(|fd| fd.map_or(nothing, |fd| entry(fd, libc::POLLIN)));
    poll(&mut fds, limit)?;
    Ok(fds.map(|fd| Ready {
        is_readable: fd.revents != 0,
        is_over: fd.revents & (libc::POLLHUP | libc::POLLNVAL) != 0,
    }))
}

/// Waits for writability, at most for `limit`; returns whether it is writable.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let mut fds = [entry(fd, libc::POLLOUT)];
    poll(&mut fds, Some(limit))?;
    Ok(fds[0].revents & libc::POLLOUT != 0)
}

fn entry(fd: BorrowedFd<'_>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

fn poll(fds: &mut [libc::pollfd], limit: Option<Duration>) -> io::Result<()> {
    let limit =
        limit.map_or(-1, |limit| libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX));
    let count = fds.len() as libc::nfds_t;
    // SAFETY: the pointer and the count describe `fds`, which is borrowed for the call and holds open descriptors.
    if unsafe { libc::poll(fds.as_mut_ptr(), count, limit) } < 0 {
        let error = io::Error::last_os_error();
        // Nothing is ready; the caller waits again.
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    Ok(())
}
