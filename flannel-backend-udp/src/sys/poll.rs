//! Waiting for descriptors (`poll(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Something can be read, or an error be asked for.
    pub(crate) first: bool,
    /// It will never be ready again: a socket was shut down, a device deleted.
    pub(crate) first_is_over: bool,
    /// The same of the second descriptor.
    pub(crate) second: bool,
}

/// Waits until either of two descriptors can be read, or has an error or a hang-up.
pub(crate) fn wait_readable(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> io::Result<Ready> {
    let mut fds = [entry(first, libc::POLLIN), entry(second, libc::POLLIN)];
    poll(&mut fds, None)?;
    let is_over = |revents| revents & (libc::POLLHUP | libc::POLLNVAL) != 0;
    let [first, second] = fds.map(|fd| fd.revents);
    Ok(Ready { first: first != 0, first_is_over: is_over(first), second: second != 0 })
}

/// Waits until something can be written, at most so long; tells whether it can.
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
        // Nothing is ready then, and the caller waits again.
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    Ok(())
}
