//! Waiting for descriptors (`poll(2)`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Something can be read, or an error be asked for.
    pub(crate) is_readable: bool,
    /// It will never be ready again: a socket was shut down, the other end of a pipe closed.
    pub(crate) is_over: bool,
}

/// Waits until any of some descriptors can be read, or has an error or a hang-up, at most so long if there is a limit.
/// Where there is no descriptor nothing is waited for, and nothing becomes ready.
pub(crate) fn wait_readable<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[Ready; N]> {
    // The kernel passes over negative numbers (poll(2)).
    let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
    let mut fds = descriptors.map(|fd| fd.map_or(nothing, |fd| entry(fd, libc::POLLIN)));
    poll(&mut fds, limit)?;
    Ok(fds.map(|fd| Ready {
        is_readable: fd.revents != 0,
        is_over: fd.revents & (libc::POLLHUP | libc::POLLNVAL) != 0,
    }))
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
