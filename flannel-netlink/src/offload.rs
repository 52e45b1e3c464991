//! The transmit checksum offload of a link.
//!
//! It uses `ioctl(2)` because the netlink family of ethtool can change features only since Linux 5.8, and the kernels with
//! wrong checksums are older.

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
    /// Returns whether the link computes transport checksums of packets that it sends (`tx-checksumming` in `ethtool -k`).
    ///
    /// # Errors
    /// [`Error::is_not_found`] is true when the link does not exist; `EOPNOTSUPP` when it has no offloads.
    pub fn tx_checksum_offload(&self, link: &str) -> Result<bool, Error> {
        Ok(self.ethtool(link, GET, 0, "read the checksum offload of")? != 0)
    }

    /// Sets whether the link or the kernel computes transport checksums of packets that the link sends
    /// (`ethtool -K LINK tx on|off`).
    ///
    /// # Errors
    /// Those of [`tx_checksum_offload`](Self::tx_checksum_offload).
    pub fn set_tx_checksum_offload(&self, link: &str, on: bool) -> Result<(), Error> {
        self.ethtool(link, SET, on.into(), "set the checksum offload of").map(drop)
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
