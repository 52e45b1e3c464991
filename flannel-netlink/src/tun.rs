//! TUN devices: links whose packets a program reads and writes.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::Error;
use crate::namespace::Namespace;
use crate::netlink::Netlink;
use crate::sys;

/// A queue of a TUN device. The device disappears with its last queue.
#[derive(Debug)]
pub struct Tun {
    /// Each read returns one packet, each write delivers one. Blocking.
    pub fd: OwnedFd,
    /// The device's name.
    pub name: String,
    /// The device's index.
    pub index: u32,
}

/// How to open a TUN device. Packets have no header (`IFF_NO_PI`) unless an option adds one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TunOptions {
    /// The name; the kernel replaces one `%d` with the first free number.
    pub name: String,
    /// Whether packets carry a `virtio_net_hdr`, which allows packets of up to 64 KiB and partial checksums
    /// (`IFF_VNET_HDR`).
    pub vnet_header: bool,
    /// Whether the device may have several queues, each opened with the same options
    /// (`IFF_MULTI_QUEUE`).
    pub multi_queue: bool,
}

impl Tun {
    /// Opens a TUN device in the namespace of the calling thread, and creates it if it does not exist. A new
    /// device is down.
    ///
    /// # Errors
    /// [`Error::Socket`] with `EPERM` without `CAP_NET_ADMIN`, `ENOENT` without
    /// `/dev/net/tun`, `EBUSY` when another program has the device, `EINVAL` when the name
    /// belongs to another kind of link.
    pub fn open(options: &TunOptions) -> Result<Self, Error> {
        let invalid = || Error::InvalidName(options.name.clone());
        let name = CString::new(options.name.as_str()).map_err(|_| invalid())?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        let attached = sys::attach_tun(&file, &name, options.flags()).map_err(|error| {
            if error.raw_os_error() == Some(libc::ENAMETOOLONG) { invalid() } else { error.into() }
        })?;
        if !options.name.contains('%') && attached != options.name {
            return Err(Error::Kernel {
                object: format!("create link {}", options.name),
                message: Some(format!("it is an alternative name of {attached}")),
                source: io::Error::from_raw_os_error(libc::EEXIST),
            });
        }
        let name = attached;
        let link = Netlink::open()?.link(&name)?;
        let index = link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?.index;
        Ok(Self { fd: file.into(), name, index })
    }

    /// Opens a TUN device in a namespace; see [`open`](Self::open).
    ///
    /// # Errors
    /// Errors of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace, options: &TunOptions) -> Result<Self, Error> {
        namespace.run(|| Self::open(options))?
    }

    /// Adopts a queue that is already open, for example one that an earlier process left with a service
    /// manager. Name and index are the current ones of its device.
    ///
    /// # Errors
    /// [`Error::Socket`] with `EBADFD` when its device is gone, `ENOTTY` when the descriptor is no queue,
    /// `EPERM` without `CAP_NET_ADMIN` in the namespace of the device; of kind `InvalidInput` when that is
    /// another namespace, or when the queue was opened with other options. The name in the options is ignored.
    pub fn adopt_in(namespace: &Namespace, fd: OwnedFd, options: &TunOptions) -> Result<Self, Error> {
        let mismatch = |reason: &str| Error::Socket(io::Error::new(io::ErrorKind::InvalidInput, reason));
        let (name, flags) = sys::attached_tun(fd.as_fd())?;
        // The kernel uses one bit for two flags: no header (IFF_NO_PI), and no packet filter (IFF_NOFILTER).
        if flags | libc::IFF_NOFILTER as i16 != options.flags() {
            return Err(mismatch("the device was opened with other options"));
        }
        if options.vnet_header && sys::tun_header_len(fd.as_fd())? != VNET_HEADER {
            return Err(mismatch("the virtio_net_hdr of the device has another length"));
        }
        if Namespace::from_file(sys::tun_namespace(fd.as_fd())?.into())? != *namespace {
            return Err(mismatch("the device is in another network namespace"));
        }
        let link = Netlink::open_in(namespace)?.link(&name)?;
        let index = link.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?.index;
        Ok(Self { fd, name, index })
    }
}

/// The default length of the header before each packet (`struct virtio_net_hdr`).
const VNET_HEADER: usize = 10;

impl TunOptions {
    /// Opens one queue without headers.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), vnet_header: false, multi_queue: false }
    }

    fn flags(&self) -> i16 {
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
        if self.vnet_header {
            flags |= libc::IFF_VNET_HDR;
        }
        if self.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        // All flags of TUNSETIFF lie within 16 bits, some in the sign (`linux/if_tun.h`).
        flags as i16
    }
}
