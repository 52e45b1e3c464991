//! Notifications of changes in nftables.

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

/// A change in nftables that the kernel announces. Treat an unknown variant like an overrun: read
/// everything again.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NftNotification {
    /// A table, or an object in it, was added, changed or removed.
    Changed {
        /// The table.
        table: NftTable,
        /// The chain, if the object is a chain or a rule.
        chain: Option<String>,
    },
    /// Notifications were lost because they came faster than they were received.
    Overrun,
}

/// Receives changes of nftables in one network namespace, made by `nft`, the nf_tables variant of `iptables`, or another
/// program.
#[derive(Debug)]
pub struct NftMonitor {
    listener: NetlinkListener,
    pending: VecDeque<NftNotification>,
}

impl NftMonitor {
    /// Subscribes in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel has no netfilter, or no descriptor or memory left.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { listener: NetlinkListener::open(NETLINK_NETFILTER, &[GROUP])?, pending: VecDeque::new() })
    }

    /// Subscribes in a namespace.
    ///
    /// # Errors
    /// Errors of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Waits for the next notification. Cancel safe.
    ///
    /// The first call ties the monitor to the current tokio runtime, which must have its IO driver enabled.
    ///
    /// # Errors
    /// [`Error::Socket`] when the socket is broken: open a new monitor and read everything again.
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without an IO driver.
    pub async fn next(&mut self) -> Result<NftNotification, Error> {
        loop {
            if let Some(notification) = self.try_next()? {
                return Ok(notification);
            }
            self.listener.readable().await?;
        }
    }

    /// Returns the next notification, if one has arrived.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub fn try_next(&mut self) -> Result<Option<NftNotification>, Error> {
        loop {
            if let Some(notification) = self.pending.pop_front() {
                return Ok(Some(notification));
            }
            match self.listener.receive()? {
                Received::Datagram(datagram) => {
                    self.pending.extend(Messages::new(datagram).flatten().filter_map(read_notification));
                }
                Received::Nothing => return Ok(None),
                Received::Overrun => return Ok(Some(NftNotification::Overrun)),
            }
        }
    }
}

/// Reads a notification; `None` for the end of a transaction, which names no table.
fn read_notification(message: Message<'_>) -> Option<NftNotification> {
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
    fn a_truncated_notification_does_not_panic() {
        let mut payload = vec![2, 0, 0, 0];
        for (kind, name) in [(1_u16, b"nat\0"), (2, b"abc\0")] {
            payload.extend(8_u16.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(name);
        }
        let read = |payload: &[u8]| {
            let bytes = received(NEW_RULE, 0, 0, payload);
            Messages::new(&bytes).flatten().find_map(read_notification)
        };
        let table = NftTable { family: NftFamily::Ip, name: "nat".to_owned() };
        assert_eq!(read(&payload), Some(NftNotification::Changed { table, chain: Some("abc".to_owned()) }));
        for length in 0..payload.len() {
            let _ = read(&payload[..length]);
        }
    }
}
