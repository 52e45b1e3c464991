//! Socket options that `socket2` lacks.
#![allow(unsafe_code, reason = "setsockopt(2) takes memory")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _};

/// Forbids fragmentation, and ignores the kernel's cached path MTU (`IP_PMTUDISC_PROBE`, ip(7)).
pub(super) fn never_fragment(socket: impl AsFd, is_v4: bool) -> io::Result<()> {
    match is_v4 {
        true => set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE),
        false => set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_PROBE),
    }
}

/// Restricts a raw socket to echo replies: ICMP_FILTER (raw(7)) and ICMP6_FILTER (RFC 3542, section 3.2). A set bit blocks
/// a type.
pub(super) fn hear_echo_replies_only(socket: impl AsFd, is_v4: bool) -> io::Result<()> {
    const SOL_RAW: libc::c_int = 255;
    const FILTER: libc::c_int = 1;
    if is_v4 {
        return set(socket, SOL_RAW, FILTER, &!1_u32);
    }
    let mut kept_away = [u32::MAX; 8];
    kept_away[129 / 32] &= !(1 << (129 % 32));
    set(socket, libc::IPPROTO_ICMPV6, FILTER, &kept_away)
}

fn set<T: Copy>(socket: impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let descriptor = socket.as_fd().as_raw_fd();
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `length` bytes of a value that is
    // plain numbers, and keeps no pointer (setsockopt(2)).
    let result =
        unsafe { libc::setsockopt(descriptor, level, name, std::ptr::from_ref(value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
