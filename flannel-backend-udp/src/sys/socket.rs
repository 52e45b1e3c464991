//! UDP sockets with bursts: `udp(7)`, `recvmmsg(2)`, `sendmsg(2)`.

use std::io::{self, IoSlice};
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// One instruction of a classic BPF program (`struct sock_filter`).
pub(crate) use libc::sock_filter as FilterInstruction;

/// The largest payload of a datagram over IPv4, and so of a burst (RFC 768, RFC 791).
pub(crate) const MAX_BURST: usize = 65_507;

/// The most messages of one receive call; each is a datagram or a burst.
const MESSAGES: usize = 8;

/// Bytes of one receive buffer; bursts stay below 64 KiB (`net/ipv4/udp_offload.c`).
const MESSAGE: usize = 65_536;

/// `linux/udp.h`.
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;

/// An aligned buffer for one control message with an `int`.
type Control = [u64; 4];

/// Returns whether a descriptor is a UDP socket (`SO_PROTOCOL`).
///
/// # Errors
///
/// `ENOTSOCK` if it isn't a socket.
pub(crate) fn is_udp(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    let mut protocol: libc::c_int = 0;
    read_option(descriptor, libc::SOL_SOCKET, libc::SO_PROTOCOL, &mut protocol)?;
    Ok(protocol == libc::IPPROTO_UDP)
}

/// Enables receive bursts (`UDP_GRO`).
pub(crate) fn set_gro(socket: &UdpSocket, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, UDP_GRO, &libc::c_int::from(on))
}

/// Sets both buffer sizes in bytes, beyond `net.core.rmem_max` and `wmem_max` (`SO_RCVBUFFORCE`, `SO_SNDBUFFORCE`, which
/// need `CAP_NET_ADMIN`).
pub(crate) fn force_buffers(socket: &UdpSocket, receive: i32, send: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &receive)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &send)
}

/// Attaches a classic BPF filter (`SO_ATTACH_FILTER`) and replaces the previous one. The kernel drops datagrams for which
/// it returns 0.
pub(crate) fn attach_filter(socket: &UdpSocket, program: &[FilterInstruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The kernel copies the program and doesn't write to it, although the C field is a mutable pointer.
    let value = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &value)
}

/// Returns the datagrams that the socket has dropped since it was opened, by its filter or because the buffer was full
/// (`SO_MEMINFO`, `SK_MEMINFO_DROPS`).
pub(crate) fn drops(socket: &UdpSocket) -> io::Result<u32> {
    const DROPS: usize = 8;
    let mut info = [0u32; 16];
    get_option(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, &mut info)?;
    Ok(info[DROPS])
}

/// Returns the path MTU, in bytes, of a connected socket (`IP_MTU`, `IPV6_MTU`).
pub(crate) fn path_mtu(socket: &UdpSocket) -> io::Result<u32> {
    let (level, name) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mut mtu: libc::c_int = 0;
    get_option(socket, level, name, &mut mtu)?;
    u32::try_from(mtu).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Sends a datagram, or several of `segment` bytes each except the last (`UDP_SEGMENT`), without blocking.
pub(crate) fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    pieces: &[IoSlice<'_>],
    segment: Option<u16>,
) -> io::Result<usize> {
    let (mut name, name_len) = RawAddress::new(to);
    let mut control = Control::default();
    // SAFETY: `msghdr` is plain data; all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_len;
    // The kernel doesn't write to sent data, and `IoSlice` has the layout of `iovec`.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    if let Some(segment) = segment {
        message.msg_control = (&raw mut control).cast();
        // SAFETY: computes a size.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(size_of::<u16>() as u32) } as _;
        // SAFETY: `msg_control` points to an aligned buffer of at least `msg_controllen` bytes, so the first header
        // lies in it, with room for a `u16` behind it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as u32) as _;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(segment);
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: all that `message` points to outlives the call: `name`, `control`, `pieces` and the bytes they borrow.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The buffers of one receive call.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    messages: Vec<Message>,
}

#[derive(Clone, Copy, Debug)]
struct Message {
    len: usize,
    from: SocketAddr,
    segment: usize,
}

/// A datagram, or a burst from one sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received<'a> {
    pub(crate) bytes: &'a [u8],
    /// The offset of these bytes in the whole buffer.
    pub(crate) start: usize,
    pub(crate) from: SocketAddr,
    /// Bytes of each datagram except the last, which may be shorter.
    pub(crate) segment: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let bytes = vec![0; MESSAGES * MESSAGE].into_boxed_slice();
        Self { bytes, messages: Vec::with_capacity(MESSAGES) }
    }

    /// Returns an inbox without buffers, as a placeholder while the real one is borrowed.
    pub(crate) fn empty() -> Self {
        Self { bytes: Box::default(), messages: Vec::new() }
    }

    /// Receives the available messages without blocking.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there are none, or the socket's pending error.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.messages.clear();
        let mut names = [RawAddress::default(); MESSAGES];
        let mut controls = [Control::default(); MESSAGES];
        // SAFETY: `iovec` and `mmsghdr` are plain data; all zeroes is a valid value.
        let mut vectors: [libc::iovec; MESSAGES] = unsafe { zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; MESSAGES] = unsafe { zeroed() };
        for (i, buffer) in self.bytes.chunks_exact_mut(MESSAGE).enumerate() {
            vectors[i] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: MESSAGE };
            let header = &mut headers[i].msg_hdr;
            header.msg_name = (&raw mut names[i]).cast();
            header.msg_namelen = size_of::<RawAddress>() as _;
            header.msg_iov = &raw mut vectors[i];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[i]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: the headers point to buffers, names and control areas of the lengths stated, which outlive the call
        // and are not used otherwise during it.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                MESSAGES as _,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (header, name) in headers.iter().zip(&names).take(count) {
            let len = (header.msg_len as usize).min(MESSAGE);
            let from = name.read().unwrap_or(SocketAddr::from(([0; 4], 0)));
            let segment = segment_len(&header.msg_hdr).filter(|segment| *segment > 0).unwrap_or(len);
            self.messages.push(Message { len, from, segment });
        }
        Ok(())
    }

    /// Returns the number of received messages.
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns the number of received bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.messages.iter().map(|message| message.len).sum()
    }

    /// Returns whether all buffers were used, so that more messages may be waiting.
    pub(crate) fn is_full(&self) -> bool {
        self.messages.len() == MESSAGES
    }

    /// Returns the whole receive buffer.
    pub(crate) fn buffer(&self) -> &[u8] {
        &self.bytes
    }

    /// Iterates over the received messages, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Received<'_>> {
        let buffers = (0..).step_by(MESSAGE).zip(self.bytes.chunks_exact(MESSAGE));
        buffers.zip(&self.messages).map(|((start, buffer), message)| Received {
            bytes: &buffer[..message.len],
            start,
            from: message.from,
            segment: message.segment,
        })
    }
}

/// Returns the datagram size of a burst (`UDP_GRO`).
fn segment_len(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled `msg_controllen` bytes of the area that `msg_control` points to, which is alive and
    // aligned; the macros stay inside it, and an `int` is read only from a message that is long enough for it.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            let is_size = ((*control).cmsg_level, (*control).cmsg_type) == (libc::SOL_UDP, UDP_GRO);
            if is_size
                && (*control).cmsg_len as usize >= libc::CMSG_LEN(size_of::<libc::c_int>() as u32) as usize
            {
                let size = libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned();
                return usize::try_from(size).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
        None
    }
}

/// A kernel socket address of either address family.
#[repr(C)]
#[derive(Clone, Copy)]
union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Default for RawAddress {
    fn default() -> Self {
        // SAFETY: all zeroes is valid for each member.
        unsafe { zeroed() }
    }
}

impl RawAddress {
    fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut raw = Self::default();
        match address {
            SocketAddr::V4(v4) => {
                raw.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: v4.ip().to_bits().to_be() },
                    sin_zero: [0; 8],
                };
                (raw, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(v6) => {
                raw.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (raw, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
            }
        }
    }

    fn read(&self) -> Option<SocketAddr> {
        // SAFETY: every member begins with the family, and all bytes are initialised; each is plain data.
        let family = libc::c_int::from(unsafe { self.family });
        match family {
            libc::AF_INET => {
                // SAFETY: as above.
                let raw = unsafe { self.v4 };
                let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
                Some(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(raw.sin_port))))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let raw = unsafe { self.v6 };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, 0)))
            }
            _ => None,
        }
    }
}

fn set_option<T>(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the pointer is valid for reads of `len` bytes during the call. The callers above pass the type that the
    // kernel reads for their option.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) })
}

fn get_option<T>(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: &mut T) -> io::Result<()> {
    read_option(socket.as_fd(), level, name, value)
}

/// Reads an option of plain integers; the kernel may fill only the first ones.
fn read_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut len = size_of_val(value) as libc::socklen_t;
    // SAFETY: the pointer is valid for writes of `len` bytes during the call, and the callers above pass integers or
    // arrays of them, for which all bytes are values.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(value).cast(), &raw mut len)
    })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
