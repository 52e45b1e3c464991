//! Notifications of changes in the kernel's tables.
//!
//! The kernel does *not* announce some changes, so a listener must read again after them:
//!
//! * A link that is set down loses its routes without notifications, and its neighbours with one each;
//!   permanent forwarding entries stay. Setting it up restores nothing.
//! * A link that loses its last IPv4 address loses its IPv4 routes without notifications.
//! * A link that is deleted loses its routes without notifications.

use std::collections::VecDeque;

use netlink_packet_core::{DecodeError, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkHeader;
use netlink_packet_route::neighbour::NeighbourHeader;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::address::Address;
use crate::error::Error;
use crate::family::IpFamily;
use crate::fdb::FdbEntry;
use crate::link::Link;
use crate::listener::{NetlinkListener, Received};
use crate::message::{Message, Messages};
use crate::namespace::Namespace;
use crate::neighbour::Neighbour;
use crate::netconf::Forwarding;
use crate::route::Route;
use crate::rtm::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH,
    RTM_NEWNETCONF, RTM_NEWROUTE,
};
use crate::sys::FilterInstruction;

// `enum rtnetlink_groups` in `linux/rtnetlink.h`.
const LINK: u32 = 1;
const NEIGHBOUR: u32 = 3;
const ADDRESSES: [u32; 2] = [5, 9];
const ROUTES: [u32; 2] = [7, 11];
const SETTINGS: [u32; 2] = [24, 25];

/// A change that the kernel announces. With `removed`, the object is gone; otherwise it is new or
/// changed. Treat an unknown variant like an overrun: read everything again.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Notification {
    /// A link.
    Link {
        /// The link in its current, or last, state.
        link: Link,
        /// Whether it was removed.
        removed: bool,
    },
    /// An address of a link.
    Address {
        /// The address.
        address: Address,
        /// Whether it was removed.
        removed: bool,
    },
    /// A route.
    Route {
        /// The route.
        route: Route,
        /// Whether it was removed.
        removed: bool,
    },
    /// A neighbour.
    Neighbour {
        /// The entry.
        neighbour: Neighbour,
        /// Whether it was removed.
        removed: bool,
    },
    /// A forwarding entry.
    Fdb {
        /// The entry.
        entry: FdbEntry,
        /// Whether it was removed.
        removed: bool,
    },
    /// Whether the host forwards packets that arrive on a link, or on any link
    /// (`net.ipv4.ip_forward` and others).
    Forwarding {
        /// The family of the packets.
        family: IpFamily,
        /// The link; `None` means all links.
        index: Option<u32>,
        /// Whether it forwards them.
        on: bool,
    },
    /// Notifications were lost because they came faster than they were received: read everything again.
    Overrun,
}

/// Receives changes of links, addresses, routes, neighbours, forwarding entries and forwarding settings
/// in one network namespace.
///
/// Open it before the first read, so that no change is missed in between.
#[derive(Debug)]
pub struct Monitor {
    listener: NetlinkListener,
    pending: VecDeque<Notification>,
}

impl Monitor {
    /// Subscribes in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel has no descriptor or memory left.
    pub fn open() -> Result<Self, Error> {
        Self::join([LINK, NEIGHBOUR].into_iter().chain(ADDRESSES).chain(ROUTES).chain(SETTINGS))
    }

    /// Subscribes in a namespace to links, addresses and default routes only. Those determine how the
    /// namespace is connected, and are few however many routes there are.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_for_connections(namespace: &Namespace) -> Result<Self, Error> {
        let monitor = namespace.run(|| Self::join([LINK].into_iter().chain(ADDRESSES).chain(ROUTES)))??;
        monitor.listener.filter(&default_routes_only())?;
        Ok(monitor)
    }

    fn join(groups: impl Iterator<Item = u32>) -> Result<Self, Error> {
        let groups: Vec<_> = groups.collect();
        Ok(Self { listener: NetlinkListener::open(NETLINK_ROUTE, &groups)?, pending: VecDeque::new() })
    }

    /// Subscribes in a namespace.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Drops notifications of routes and neighbours that sockets with the given
    /// [port numbers](crate::Netlink::port_id) change; replaces an earlier list.
    ///
    /// Notifications of links and addresses still arrive, because other objects change silently with
    /// them, and those of forwarding entries, because the kernel does not name the socket.
    ///
    /// # Errors
    /// [`Error::Socket`] when the list is too long for the kernel (about 2,000).
    pub fn ignore_changes_of(&mut self, port_ids: &[u32]) -> Result<(), Error> {
        self.listener.filter(&filter(port_ids))
    }

    /// Waits for the next notification. Cancel safe.
    ///
    /// The first call ties the monitor to the current tokio runtime, which must have its IO driver
    /// enabled.
    ///
    /// # Errors
    /// [`Error::Socket`] when the socket is broken: open a new monitor and read everything again.
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without an IO driver.
    pub async fn next(&mut self) -> Result<Notification, Error> {
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
    pub fn try_next(&mut self) -> Result<Option<Notification>, Error> {
        loop {
            if let Some(notification) = self.pending.pop_front() {
                return Ok(Some(notification));
            }
            match self.listener.receive()? {
                Received::Datagram(datagram) => read_notifications(datagram, &mut self.pending),
                Received::Nothing => return Ok(None),
                Received::Overrun => return Ok(Some(Notification::Overrun)),
            }
        }
    }
}

fn read_notifications(datagram: &[u8], pending: &mut VecDeque<Notification>) {
    for message in Messages::new(datagram) {
        match message.and_then(read_notification) {
            Ok(notification) => pending.extend(notification),
            Err(reason) => tracing::trace!(%reason, "ignoring a notification that cannot be read"),
        }
    }
}

fn read_notification(message: Message<'_>) -> Result<Option<Notification>, DecodeError> {
    let removed = matches!(message.kind, RTM_DELLINK | RTM_DELADDR | RTM_DELROUTE | RTM_DELNEIGH);
    Ok(match message.kind {
        RTM_NEWLINK | RTM_DELLINK => {
            // A bridge announces its ports in messages of its own family, in which "removed" means that
            // the port left the bridge (`br_ifinfo_notify`).
            let header = LinkHeader::parse(message.payload)?;
            if header.interface_family == AddressFamily::Bridge {
                return Ok(None);
            }
            Some(Notification::Link { link: Link::read(message)?, removed })
        }
        RTM_NEWADDR | RTM_DELADDR => {
            Address::read(message)?.map(|address| Notification::Address { address, removed })
        }
        RTM_NEWROUTE | RTM_DELROUTE => {
            Route::read(message)?.map(|route| Notification::Route { route, removed })
        }
        RTM_NEWNEIGH | RTM_DELNEIGH => {
            if NeighbourHeader::parse(message.payload)?.family == AddressFamily::Bridge {
                FdbEntry::read(message)?.map(|entry| Notification::Fdb { entry, removed })
            } else {
                Neighbour::read(message)?.map(|neighbour| Notification::Neighbour { neighbour, removed })
            }
        }
        RTM_NEWNETCONF => Forwarding::read(message)?
            .map(|Forwarding { family, index, on }| Notification::Forwarding { family, index, on }),
        NLMSG_NOOP | NLMSG_ERROR | NLMSG_DONE => None,
        _ => None,
    })
}

/// Builds a BPF program that drops notifications of routes other than default ones.
fn default_routes_only() -> Vec<FilterInstruction> {
    // nlmsg_type is at offset 4, and rtm_dst_len is the second byte after `struct nlmsghdr`.
    vec![
        step(LOAD_HALF, 4, 0, 0),
        step(IF_EQUAL, u32::from(RTM_NEWROUTE.to_be()), 1, 0),
        step(IF_EQUAL, u32::from(RTM_DELROUTE.to_be()), 0, 2),
        step(LOAD_BYTE, 17, 0, 0),
        step(IF_EQUAL, 0, 0, 1),
        step(RETURN, TAKE, 0, 0),
        step(RETURN, DROP, 0, 0),
    ]
}

// Instructions and return values of classic BPF.
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const DROP: u32 = 0;
const TAKE: u32 = u32::MAX;

/// Builds an instruction, with the number of instructions to skip if a comparison is true or false.
fn step(code: u16, k: u32, if_true: u8, if_false: u8) -> FilterInstruction {
    FilterInstruction { code, jt: if_true, jf: if_false, k }
}

/// Builds a BPF program that drops notifications of routes and neighbours with one of the given ports in
/// `nlmsg_pid`. BPF loads in network byte order what netlink writes in host byte order, so constants are
/// swapped.
fn filter(port_ids: &[u32]) -> Vec<FilterInstruction> {
    let kinds = [RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH];

    // nlmsg_type is at offset 4, nlmsg_pid at 12 (`struct nlmsghdr`).
    let mut program = vec![step(LOAD_HALF, 4, 0, 0)];
    for (position, kind) in kinds.iter().enumerate() {
        // On equality, skip the return that follows the last kind.
        let skip = (kinds.len() - position) as u8;
        program.push(step(IF_EQUAL, u32::from(kind.to_be()), skip, 0));
    }
    program.push(step(RETURN, TAKE, 0, 0));
    program.push(step(LOAD_WORD, 12, 0, 0));
    for port_id in port_ids {
        program.push(step(IF_EQUAL, port_id.to_be(), 0, 1));
        program.push(step(RETURN, DROP, 0, 0));
    }
    program.push(step(RETURN, TAKE, 0, 0));
    program
}
