//! System calls that the standard library does not wrap, as small safe functions.
#![allow(unsafe_code, reason = "sockets of raw families, signals and mounts are reached through libc only")]

use flannel_netlink::Namespace;
use std::ffi::{CString, c_int};
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Makes the program of `command` start inside the network namespace behind `namespace`, and die with
/// `parent`.
///
/// The kernel sends SIGKILL to the program when the *thread* that forked it ends (`prctl(2)`,
/// PR_SET_PDEATHSIG).
pub(crate) fn enter_before_exec(command: &mut Command, namespace: Namespace, parent: u32) {
    let enter = move || {
        // SAFETY: setns, prctl and getppid are async-signal-safe, take no memory of ours, and the descriptor
        // lives as long as this closure.
        unsafe {
            if libc::setns(namespace.as_fd().as_raw_fd(), libc::CLONE_NEWNET) != 0
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
            {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the request above was in place.
            if libc::getppid().cast_unsigned() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls and neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

/// Passes descriptors to the program of `command`, from number 3 on.
pub(crate) fn pass_before_exec(command: &mut Command, descriptors: Vec<OwnedFd>) -> io::Result<()> {
    if descriptors.is_empty() {
        return Ok(());
    }
    // Numbers above those that they get in the program.
    let above = descriptors.iter().map(|descriptor| {
        // SAFETY: takes no memory; the descriptor is open.
        let copy = check(unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FREE_FROM) })?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else holds it.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    });
    let descriptors: Vec<OwnedFd> = above.collect::<io::Result<_>>()?;
    let pass = move || {
        for (number, descriptor) in (3..).zip(&descriptors) {
            // SAFETY: dup2 is async-signal-safe and takes no memory; what it replaces in the child is closed on
            // exec anyway.
            check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes async-signal-safe calls and neither allocates nor locks.
    unsafe { command.pre_exec(pass) };
    Ok(())
}

/// More descriptors than any test passes.
const FREE_FROM: c_int = 128;

/// Receives a datagram and the descriptors that come with it, eight at most, closed on exec (`unix(7)`,
/// SCM_RIGHTS).
pub(crate) fn receive_with_descriptors(
    socket: &UnixDatagram,
    buf: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = [0_u64; 8];
    let mut vector = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: all that `message` points to is valid for writes of the lengths given, during the call.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    let mut descriptors = Vec::new();
    // SAFETY: the kernel has filled `msg_controllen` bytes of `control`, which is alive and aligned; the macros stay
    // inside it, and descriptors are read only as far as a message of theirs reaches. Nobody else holds them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<c_int>();
                for number in 0..bytes / size_of::<c_int>() {
                    descriptors.push(OwnedFd::from_raw_fd(first.add(number).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((n, descriptors))
}

/// Returns whether a descriptor has an error or a hang-up (`poll(2)`).
pub(crate) fn has_hung_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `asked` is one valid `pollfd` during the call.
    check(unsafe { libc::poll(&raw mut asked, 1, 0) })?;
    Ok(asked.revents & (libc::POLLERR | libc::POLLHUP) != 0)
}

/// Moves the calling thread into the network namespace behind `namespace` (`setns(2)`).
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no memory; the descriptor is open for the length of the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Sends `signal` to the process `pid` (`kill(2)`).
pub(crate) fn signal(pid: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: takes no memory.
    check(unsafe { libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// Sends `signal` to all processes of the group `group` (`kill(2)`).
pub(crate) fn signal_group(group: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: takes no memory.
    check(unsafe { libc::kill(-group.cast_signed(), signal) }).map(drop)
}

/// Tries to lock an open file or directory (`flock(2)`) and returns whether it succeeded.
pub(crate) fn try_lock(file: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: takes no memory; the descriptor is open for the length of the call.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens a socket in the namespace of the calling thread, closed on exec (`socket(2)`).
pub(crate) fn socket(family: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no memory.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets a socket option whose value is an `int` (`setsockopt(2)`).
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length_of::<c_int>())
    })
    .map(drop)
}

/// Binds a socket of an internet family to `address` (`bind(2)`).
pub(crate) fn bind(socket: BorrowedFd<'_>, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: all zeroes is a valid `sockaddr_in`.
            let mut raw: libc::sockaddr_in = unsafe { zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            bind_raw(socket, &raw)
        }
        SocketAddr::V6(v6) => {
            // SAFETY: all zeroes is a valid `sockaddr_in6`.
            let mut raw: libc::sockaddr_in6 = unsafe { zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = v6.port().to_be();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
            bind_raw(socket, &raw)
        }
    }
}

/// Binds a packet socket to all protocols of one link (`packet(7)`).
pub(crate) fn bind_to_link(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut raw: libc::sockaddr_ll = unsafe { zeroed() };
    raw.sll_family = libc::AF_PACKET as u16;
    raw.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    raw.sll_ifindex = index.cast_signed();
    bind_raw(socket, &raw)
}

/// Receives one frame from a packet socket without waiting: its length (which may exceed `buf`) and its kind
/// (`PACKET_OUTGOING`, …).
pub(crate) fn receive_frame(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, u8)> {
    // SAFETY: all zeroes is a valid `sockaddr_ll`.
    let mut from: libc::sockaddr_ll = unsafe { zeroed() };
    let mut from_length = length_of::<libc::sockaddr_ll>();
    // SAFETY: `buf`, `from` and `from_length` are valid for writes of the lengths given, during the call.
    let n = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buf.as_mut_ptr().cast(),
            buf.len(),
            libc::MSG_TRUNC | libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut from_length,
        )
    };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    Ok((n, from.sll_pkttype))
}

/// Waits until `socket` can be read, has an error, or `limit` (in whole milliseconds) has passed (`poll(2)`).
pub(crate) fn wait_readable(socket: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let mut wanted = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: `wanted` is one valid `pollfd` during the call.
    check(unsafe { libc::poll(&raw mut wanted, 1, limit) }).map(drop)
}

/// Waits until either of two descriptors can be read or has an error, or `limit` has passed (`poll(2)`).
pub(crate) fn wait_either(one: BorrowedFd<'_>, other: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
    let wanted = |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut wanted = [wanted(one), wanted(other)];
    let limit = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the pointer and the number describe `wanted` during the call.
    check(unsafe { libc::poll(wanted.as_mut_ptr(), 2, limit) }).map(drop)
}

/// Makes reads and writes return at once (`fcntl(2)`, O_NONBLOCK).
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no memory.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: takes no memory.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Counts the frames that a packet socket had no room for since the last call (`packet(7)`,
/// PACKET_STATISTICS).
pub(crate) fn frames_dropped(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: all zeroes is a valid `tpacket_stats`.
    let mut stats: libc::tpacket_stats = unsafe { zeroed() };
    let mut length = length_of::<libc::tpacket_stats>();
    // SAFETY: `stats` and `length` are valid for writes of the lengths given, during the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    })?;
    Ok(stats.tp_drops)
}

/// Looks up the index of a link of the calling thread's namespace by its name (`if_nametoindex(3)`).
pub(crate) fn link_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` ends with a NUL and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Mounts `source` on `target` a second time (`mount(2)`, MS_BIND).
pub(crate) fn bind_mount(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (path(source)?, path(target)?);
    let none = std::ptr::null();
    // SAFETY: both paths end with a NUL and outlive the call; a bind mount needs neither type nor data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast()) })
        .map(drop)
}

/// Detaches what is mounted on `target` (`umount2(2)`, MNT_DETACH).
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = path(target)?;
    // SAFETY: the path ends with a NUL and outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Limits the calling thread to these capabilities (bits of `linux/capability.h`) for its lifetime (`capset(2)`).
pub(crate) fn keep_capabilities(bits: &[u32]) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    let [low, high] = [0, 32].map(|from| {
        let here = bits.iter().filter(|bit| (from..from + 32).contains(*bit));
        here.fold(0, |set: u32, bit| set | 1 << (bit - from))
    });
    let header: [u32; 2] = [VERSION, 0];
    // Effective, permitted and inheritable, for the low and the high half of all capabilities.
    let data: [u32; 6] = [low, low, 0, high, high, 0];
    // SAFETY: both pointers are to structures of the size that this version has, and live through the call; nothing but
    // the capabilities of this thread changes.
    let answer = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn bind_raw<T>(socket: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: the pointer and length describe `address`, a socket address structure that outlives the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const *address).cast(), length_of::<T>()) }).map(drop)
}

fn path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn check(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
