//! Notices of what anybody changed in nftables.

use std::collections::VecDeque;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::attributes::text;
use crate::error::Error;
use crate::listener::{NetlinkListener, Received};
use crate::message::{Message, Messages};
use crate::namespace::Namespace;
use crate::nftables::{CHAIN_NAME, NftTable, RULE_CHAIN, SUBSYSTEM, body, table_of};

/// `NFNLGRP_NFTABLES` (`enum nfnetlink_groups` in `linux/netfilter/nfnetlink.h`).
const GROUP: u32 = 7;

// `enum nf_tables_msg_types`.
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;

/// A change of nftables that the kernel tells of. A notice of a kind that is not known is a reason
/// to look again, as an overrun is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NftNotification {
    /// A table, or something in it, is new, different, or gone.
    Changed {
        /// The table.
        table: NftTable,
        /// The chain, if it is about one or about a rule in one.
        chain: Option<String>,
    },
    /// Notices were lost, because they came faster than they were taken.
    Overrun,
}

/// A listener to the changes of nftables in one network namespace, whoever makes them: `nft`, `iptables` of the nf_tables
/// variant, or another program.
#[derive(Debug)]
pub struct NftMonitor {
    listener: NetlinkListener,
    waiting: VecDeque<NftNotification>,
}

impl NftMonitor {
    /// Starts to listen in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel has no netfilter, or no descriptor or memory left.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { listener: NetlinkListener::open(NETLINK_NETFILTER, &[GROUP])?, waiting: VecDeque::new() })
    }

    /// Starts to listen in the given namespace.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Waits for the next notice. If the future is dropped, no notice is lost.
    ///
    /// The first call ties the monitor to the tokio runtime it is made in, which must have its IO driver enabled.
    ///
    /// # Errors
    /// [`Error::Socket`] when the socket is broken: open another monitor and look at everything again.
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without an IO driver.
    pub async fn next(&mut self) -> Result<NftNotification, Error> {
        loop {
            if let Some(notice) = self.try_next()? {
                return Ok(notice);
            }
            self.listener.readable().await?;
        }
    }

    /// The next notice, if one has arrived.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<NftNotification>, Error> {
        loop {
            if let Some(notice) = self.waiting.pop_front() {
                return Ok(Some(notice));
            }
            match self.listener.receive()? {
                Received::Datagram(datagram) => {
                    self.waiting.extend(Messages::new(datagram).flatten().filter_map(read_notice));
                }
                Received::Nothing => return Ok(None),
                Received::Overrun => return Ok(Some(NftNotification::Overrun)),
            }
        }
    }
}

/// Reads a notice; `None` for the end of a change, which names no table.
fn read_notice(message: Message<'_>) -> Option<NftNotification> {
    let chain = match message.kind {
        NEW_CHAIN | DELETE_CHAIN => text(body(message), CHAIN_NAME),
        NEW_RULE | DELETE_RULE => text(body(message), RULE_CHAIN),
        kind if kind & 0xff00 == SUBSYSTEM => None,
        _ => return None,
    };
    Some(NftNotification::Changed { table: table_of(message)?, chain })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::received;
    use crate::nftables::NftFamily;

    #[test]
    fn a_notice_cut_anywhere_is_read_or_passed_over_without_a_panic() {
        let mut payload = vec![2, 0, 0, 0];
        for (kind, name) in [(1_u16, b"nat\0"), (2, b"abc\0")] {
            payload.extend(8_u16.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(name);
        }
        let read = |payload: &[u8]| {
            let bytes = received(NEW_RULE, 0, 0, payload);
            Messages::new(&bytes).flatten().find_map(read_notice)
        };
        let table = NftTable { family: NftFamily::Ip, name: "nat".to_owned() };
        assert_eq!(read(&payload), Some(NftNotification::Changed { table, chain: Some("abc".to_owned()) }));
        for length in 0..payload.len() {
            let _ = read(&payload[..length]);
        }
    }
}
