//! Notices: what anybody changed in the kernel's tables.
//!
//! What the kernel does *not* tell, so that a listener must look again by itself:
//!
//! * A link that is set down loses its routes without a notice for any of them, and its
//!   neighbours with one each; permanent forwarding entries stay. Set up again, it gets nothing
//!   back.
//! * A link that loses its last IPv4 address loses its IPv4 routes without a notice.
//! * A link that is deleted takes its routes with it without a notice.

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

/// A change that the kernel tells of. `removed` says whether the object is gone; otherwise it is
/// new or different. A notice of a kind that is not known is a reason to look again, as an overrun
/// is.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Notification {
    /// A link.
    Link {
        /// The link as it is now, or was last.
        link: Link,
        /// Whether it is gone.
        removed: bool,
    },
    /// An address of a link.
    Address {
        /// The address.
        address: Address,
        /// Whether it is gone.
        removed: bool,
    },
    /// A route.
    Route {
        /// The route.
        route: Route,
        /// Whether it is gone.
        removed: bool,
    },
    /// A neighbour.
    Neighbour {
        /// The entry.
        neighbour: Neighbour,
        /// Whether it is gone.
        removed: bool,
    },
    /// A forwarding entry.
    Fdb {
        /// The entry.
        entry: FdbEntry,
        /// Whether it is gone.
        removed: bool,
    },
    /// Whether packets are forwarded that arrive on a link, or on any (`net.ipv4.ip_forward` and
    /// the like).
    Forwarding {
        /// The family of the packets.
        family: IpFamily,
        /// The link; `None` is all of them.
        index: Option<u32>,
        /// Whether they are.
        on: bool,
    },
    /// Notices were lost, because they came faster than they were taken: everything must be
    /// read again.
    Overrun,
}

/// A listener to the changes of links, addresses, routes, neighbours, forwarding entries and
/// settings of forwarding in one network namespace.
///
/// Open it before the first read, so that no change falls between the two.
#[derive(Debug)]
pub struct Monitor {
    listener: NetlinkListener,
    waiting: VecDeque<Notification>,
}

impl Monitor {
    /// Starts to listen in the namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Socket`] when the kernel has no descriptor or memory left.
    pub fn open() -> Result<Self, Error> {
        Self::join([LINK, NEIGHBOUR].into_iter().chain(ADDRESSES).chain(ROUTES).chain(SETTINGS))
    }

    /// Starts to listen in the given namespace, to links, addresses and default routes only: what
    /// tells where the namespace is connected, and is not much however many routes there are.
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
        Ok(Self { listener: NetlinkListener::open(NETLINK_ROUTE, &groups)?, waiting: VecDeque::new() })
    }

    /// Starts to listen in the given namespace.
    ///
    /// # Errors
    /// Those of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Stops hearing of the routes and neighbours that the sockets with the given
    /// [port numbers](crate::Netlink::port_id) change; replaces an earlier list.
    ///
    /// Links and addresses are still heard of, because of what goes with them silently, and
    /// forwarding entries, because the kernel does not say who changed them.
    ///
    /// # Errors
    /// [`Error::Socket`] when the list is too long for the kernel (about 2,000).
    pub fn ignore_changes_of(&mut self, port_ids: &[u32]) -> Result<(), Error> {
        self.listener.filter(&filter(port_ids))
    }

    /// Waits for the next notice. If the future is dropped, no notice is lost.
    ///
    /// The first call ties the monitor to the tokio runtime it is made in, which must have its
    /// IO driver enabled.
    ///
    /// # Errors
    /// [`Error::Socket`] when the socket is broken: open another monitor and read everything
    /// again.
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without an IO driver.
    pub async fn next(&mut self) -> Result<Notification, Error> {
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
    pub fn try_next(&mut self) -> Result<Option<Notification>, Error> {
        loop {
            if let Some(notice) = self.waiting.pop_front() {
                return Ok(Some(notice));
            }
            match self.listener.receive()? {
                Received::Datagram(datagram) => take_notices(datagram, &mut self.waiting),
                Received::Nothing => return Ok(None),
                Received::Overrun => return Ok(Some(Notification::Overrun)),
            }
        }
    }
}

fn take_notices(datagram: &[u8], waiting: &mut VecDeque<Notification>) {
    for message in Messages::new(datagram) {
        match message.and_then(read_notice) {
            Ok(notice) => waiting.extend(notice),
            Err(reason) => tracing::trace!(%reason, "notice that cannot be read ignored"),
        }
    }
}

fn read_notice(message: Message<'_>) -> Result<Option<Notification>, DecodeError> {
    let removed = matches!(message.kind, RTM_DELLINK | RTM_DELADDR | RTM_DELROUTE | RTM_DELNEIGH);
    Ok(match message.kind {
        RTM_NEWLINK | RTM_DELLINK => {
            // A bridge speaks of its ports in messages of its own family, in which "removed"
            // means that the port left the bridge (`br_ifinfo_notify`).
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

/// A program for the kernel's packet filter machine that drops notices about other routes than
/// default ones.
fn default_routes_only() -> Vec<FilterInstruction> {
    // nlmsg_type is at offset 4, and rtm_dst_len the second byte behind `struct nlmsghdr`.
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

// The machine's instructions, and what it returns.
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const DROP: u32 = 0;
const TAKE: u32 = u32::MAX;

/// One instruction, with the number of instructions to skip if a comparison is true or false.
fn step(code: u16, k: u32, if_true: u8, if_false: u8) -> FilterInstruction {
    FilterInstruction { code, jt: if_true, jf: if_false, k }
}

/// A program for the kernel's packet filter machine that drops notices about routes and
/// neighbours with one of the given ports in `nlmsg_pid`. The machine loads in network byte
/// order what netlink writes in the host's, so the constants are turned round.
fn filter(port_ids: &[u32]) -> Vec<FilterInstruction> {
    let kinds = [RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEIGH, RTM_DELNEIGH];

    // nlmsg_type is at offset 4, nlmsg_pid at 12 (`struct nlmsghdr`).
    let mut program = vec![step(LOAD_HALF, 4, 0, 0)];
    for (position, kind) in kinds.iter().enumerate() {
        // On equality go on behind the return that follows the last kind.
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
