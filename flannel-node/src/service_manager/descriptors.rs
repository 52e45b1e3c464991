//! Descriptors that pass between processes, and the clock of the service manager.

#![allow(unsafe_code, reason = "the standard library offers neither")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that a service manager passes (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Takes the first `count` descriptors that the process inherited, each if it is open, and closes them on exec. Call it
/// before anything is opened; a second call returns nothing.
pub(super) fn inherited(count: usize) -> Vec<Option<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let take = |number: RawFd| {
        // SAFETY: accesses no memory; an invalid descriptor is an error.
        let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: the descriptor is open. The process inherited it, and this is the only place that takes it, once.
        is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
    };
    (FIRST..).take(count).map(take).collect()
}

/// Sends a datagram with a copy of a descriptor through a connected socket (`unix(7)`, SCM_RIGHTS).
pub(super) fn send(socket: &UnixDatagram, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
    const LEN: u32 = size_of::<RawFd>() as u32;
    let mut control = [0_u64; 4];
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: `msghdr` is plain data for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    // SAFETY: computes a size, which is less than that of `control`.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(LEN) } as _;
    // SAFETY: `msg_control` points to an aligned buffer of at least `msg_controllen` bytes, so the first header lies in
    // it, with room for a descriptor behind it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(LEN) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
    }
    loop {
        // SAFETY: all that `message` points to outlives the call, which reads it and writes nothing: `vector`, `bytes`
        // and `control`.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Returns the time of `CLOCK_MONOTONIC`, which the service manager uses.
pub(super) fn monotonic_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one value is written, which lives as long as the call (clock_gettime(2)); this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let (seconds, rest) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    std::time::Duration::new(seconds.unwrap_or_default(), rest.unwrap_or_default())
}
