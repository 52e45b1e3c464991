//! Whether a link is left to finish transport checksums of what it sends.
//!
//! Asked by `ioctl(2)` and not over the newer netlink family of ethtool: that one can change features since Linux 5.8
//! only, and the kernels whose checksums are wrong are older.

use std::ffi::CString;
use std::io;

use crate::error::Error;
use crate::link_name::check_name;
use crate::netlink::Netlink;
use crate::sys;

/// `ETHTOOL_GTXCSUM` and `ETHTOOL_STXCSUM` (`linux/ethtool.h`).
const GET: u32 = 0x16;
const SET: u32 = 0x17;

impl Netlink {
    /// Tells whether checksums of packets that a link sends are left to the link (`tx-checksumming` of `ethtool -k`).
    ///
    /// # Errors
    /// One for which [`Error::is_not_found`] holds when there is no such link; `EOPNOTSUPP` when it knows no offloads.
    pub fn tx_checksum_offload(&self, link: &str) -> Result<bool, Error> {
        Ok(self.ethtool(link, GET, 0, "read the checksum offload of")? != 0)
    }

    /// Leaves checksums of packets that a link sends to the link, or has the kernel compute them before
    /// (`ethtool -K LINK tx on|off`).
    ///
    /// # Errors
    /// As [`tx_checksum_offload`](Self::tx_checksum_offload).
    pub fn set_tx_checksum_offload(&self, link: &str, leave: bool) -> Result<(), Error> {
        self.ethtool(link, SET, leave.into(), "set the checksum offload of").map(drop)
    }

    fn ethtool(&self, link: &str, command: u32, value: u32, action: &str) -> Result<u32, Error> {
        check_name(link)?;
        let refused = |source: io::Error| Error::Kernel {
            object: format!("{action} link {link}"),
            message: None,
            source,
        };
        let name = CString::new(link).map_err(|_| Error::InvalidName(link.to_owned()))?;
        sys::ethtool(self.descriptor(), &name, command, value).map_err(refused)
    }
}
