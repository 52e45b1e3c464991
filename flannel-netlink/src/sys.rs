//! System calls that the netlink crates do not offer, as safe functions.
#![allow(unsafe_code, reason = "the only module of the crate with system calls")]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use netlink_sys::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One instruction of a classic BPF program (`struct sock_filter`).
pub(crate) use libc::sock_filter as FilterInstruction;

/// Moves the calling thread into a network namespace (`setns(2)`).
pub(crate) fn enter_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as it is borrowed; no memory is passed.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Moves the calling thread into a new network namespace (`unshare(2)`).
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: passes no memory; CLONE_NEWNET concerns the calling thread alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })
}

/// Sets the time limit of a receive (`SO_RCVTIMEO`).
pub(crate) fn set_receive_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<()> {
    // The types of the members differ between platforms.
    let value = libc::timeval {
        tv_sec: timeout.as_secs().try_into().unwrap_or(i32::MAX.into()),
        tv_usec: (timeout.subsec_micros() as i32).into(),
    };
    set_option(socket.as_fd(), libc::SO_RCVTIMEO, &value)
}

/// Sets the size of the receive buffer in bytes, beyond `net.core.rmem_max`
/// (`SO_RCVBUFFORCE`, needs `CAP_NET_ADMIN`).
pub(crate) fn force_receive_buffer(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set_option(socket.as_fd(), libc::SO_RCVBUFFORCE, &bytes)
}

/// Attaches a classic BPF program; the kernel drops messages for which it returns 0 (`SO_ATTACH_FILTER`).
pub(crate) fn attach_filter(socket: impl AsFd, program: &[FilterInstruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The kernel copies the program and never writes to it; the field is `*mut` only in C.
    let value = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set_option(socket.as_fd(), libc::SO_ATTACH_FILTER, &value)
}

/// Turns a descriptor of `/dev/net/tun` into a queue of the device `name`, which may contain one `%d`.
/// Returns the name of the device (`TUNSETIFF`).
pub(crate) fn attach_tun(tun: impl AsFd, name: &CStr, flags: i16) -> io::Result<String> {
    let bytes = name.to_bytes_with_nul();
    if bytes.len() > libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the request lives through the call, which reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) })?;
    link_name(&request)
}

/// Returns the device of a queue and the flags that it was opened with (`TUNGETIFF`).
pub(crate) fn attached_tun(tun: BorrowedFd<'_>) -> io::Result<(String, i16)> {
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request lives through the call, which writes one `ifreq`.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) })?;
    // SAFETY: the kernel has written the flags, and the bytes of any other member are a value of this one.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((link_name(&request)?, flags))
}

/// Returns the length of the header before each packet (`TUNGETVNETHDRSZ`).
pub(crate) fn tun_header_len(tun: BorrowedFd<'_>) -> io::Result<usize> {
    let mut len: libc::c_int = 0;
    // SAFETY: the pointer is to an `int` that outlives the call, which the kernel writes.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETVNETHDRSZ as _, &raw mut len) })?;
    usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Opens the network namespace of the device of a queue (`TUNGETDEVNETNS`).
pub(crate) fn tun_namespace(tun: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes no memory; the descriptor is open for as long as it is borrowed.
    opened(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETDEVNETNS as _) })
}

/// Opens the network namespace of a socket (`SIOCGSKNS`, `linux/sockios.h`).
pub(crate) fn socket_namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: u32 = 0x894c;
    // SAFETY: takes no memory; the descriptor is open for as long as it is borrowed.
    opened(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) })
}

fn opened(answer: libc::c_int) -> io::Result<OwnedFd> {
    check(answer)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else holds it.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}

fn link_name(request: &libc::ifreq) -> io::Result<String> {
    let name: Vec<u8> =
        request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))
}

/// Reads or sets a value of a link (`SIOCETHTOOL`, `struct ethtool_value`) in the namespace of a socket. Returns the value
/// that the kernel left.
pub(crate) fn ethtool(socket: BorrowedFd<'_>, link: &CStr, command: u32, value: u32) -> io::Result<u32> {
    let bytes = link.to_bytes_with_nul();
    if bytes.len() > libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut values: [u32; 2] = [command, value];
    // SAFETY: `ifreq` is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_data = values.as_mut_ptr().cast();
    // SAFETY: the request, and the two numbers that it points to and that the kernel reads and writes for the commands
    // of `offload`, live through the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })?;
    Ok(values[1])
}

/// Registers a socket with the current tokio runtime, to wait until it is readable.
///
/// # Panics
/// Outside a tokio runtime, or in one without an IO driver.
pub(crate) fn readable(socket: Arc<Socket>) -> io::Result<AsyncFd<Arc<Socket>>> {
    // SAFETY: the socket's descriptor is open and the same from its creation to its drop, and
    // the shared pointer that is handed over keeps it from being dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

fn set_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let len =
        libc::socklen_t::try_from(size_of::<T>()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the pointer is valid for reads of `len` bytes during the call. The callers above
    // pass the type that the kernel reads for their option.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), len)
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
