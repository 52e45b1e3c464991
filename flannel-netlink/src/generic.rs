//! Generic netlink: families that the kernel numbers at run time, such as `wireguard` or `ethtool`.

use std::fmt::Display;

use netlink_sys::protocols::NETLINK_GENERIC;

use crate::attributes::{AttributeWriter, attribute, attributes, text};
use crate::error::Error;
use crate::message::RawMessage;
use crate::namespace::Namespace;
use crate::socket::NetlinkSocket;

/// `GENL_ID_CTRL` in `linux/genetlink.h`.
const CONTROLLER: u16 = 16;
/// The version of the controller's commands.
const CONTROLLER_VERSION: u8 = 2;
/// `CTRL_CMD_GETFAMILY`.
const GET_FAMILY: u8 = 3;

// `CTRL_ATTR_*`.
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const VERSION: u16 = 3;
const HEADER_SIZE: u16 = 4;
const MULTICAST_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

/// `sizeof(struct genlmsghdr)`.
const HEADER_LEN: usize = 4;

/// A generic netlink family.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct GenericFamily {
    /// The message type, which the kernel chose when the family was registered.
    pub id: u16,
    /// The name.
    pub name: String,
    /// The version of its commands.
    pub version: u8,
    /// The length in bytes of the header that the family puts before the attributes; mostly 0.
    pub header_size: u32,
    /// The multicast groups: names, and numbers for [`NetlinkListener`](crate::NetlinkListener).
    pub groups: Vec<(String, u32)>,
}

/// A socket for generic netlink in one network namespace.
///
/// ```no_run
/// use flannel_netlink::{AttributeWriter, GenericNetlink};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// const GET_DEVICE: u8 = 0; // WG_CMD_GET_DEVICE
/// const DEVICE_NAME: u16 = 2; // WGDEVICE_A_IFNAME
///
/// let mut netlink = GenericNetlink::open()?;
/// let wireguard = netlink.family("wireguard")?.ok_or("the kernel has no WireGuard")?;
/// let name = AttributeWriter::new().string(DEVICE_NAME, "wg0").finish();
/// let device = netlink.dump("WireGuard devices", &wireguard, GET_DEVICE, &name)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct GenericNetlink {
    socket: NetlinkSocket,
}

impl GenericNetlink {
    /// Opens a socket in the namespace of the calling thread.
    ///
    /// # Errors
    /// Those of [`NetlinkSocket::open`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetlinkSocket::open(NETLINK_GENERIC)? })
    }

    /// Opens a socket in a namespace.
    ///
    /// # Errors
    /// Errors of [`open`](Self::open) and of entering the namespace.
    pub fn open_in(namespace: &Namespace) -> Result<Self, Error> {
        namespace.run(Self::open)?
    }

    /// Looks up a family by name. The kernel loads the module that has it, if it can. Returns `None` if there is no
    /// such family.
    ///
    /// # Errors
    /// Errors of the kernel and the socket.
    pub fn family(&mut self, name: &str) -> Result<Option<GenericFamily>, Error> {
        let attributes = AttributeWriter::new().string(FAMILY_NAME, name).finish();
        let request = command(CONTROLLER, GET_FAMILY, CONTROLLER_VERSION, &attributes);
        match self.socket.query(format_args!("look up generic netlink family {name}"), &request) {
            Ok(reply) => Ok(read_family(body(&reply))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads all families that are registered.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when they kept changing, and errors of the socket.
    pub fn families(&mut self) -> Result<Vec<GenericFamily>, Error> {
        let request = command(CONTROLLER, GET_FAMILY, CONTROLLER_VERSION, &[]);
        let replies = self.socket.dump("generic netlink families", &request)?;
        Ok(replies.iter().filter_map(|reply| read_family(body(reply))).collect())
    }

    /// Executes a command and waits until the kernel has done it. `object` names the action for errors: "set the peers
    /// of wg0".
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses, and errors of the socket.
    pub fn execute(
        &mut self,
        object: impl Display,
        family: &GenericFamily,
        command: u8,
        attributes: &[u8],
    ) -> Result<(), Error> {
        self.socket.execute(object, &family.command(command, attributes), 0)
    }

    /// Executes a command that has one answer, and returns the attributes of that.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute).
    pub fn query(
        &mut self,
        object: impl Display,
        family: &GenericFamily,
        command: u8,
        attributes: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let reply = self.socket.query(object, &family.command(command, attributes))?;
        Ok(family.body(&reply))
    }

    /// Executes a command that lists objects, and returns the attributes of each answer.
    ///
    /// # Errors
    /// Those of [`execute`](Self::execute), and [`Error::Interrupted`].
    pub fn dump(
        &mut self,
        objects: &'static str,
        family: &GenericFamily,
        command: u8,
        attributes: &[u8],
    ) -> Result<Vec<Vec<u8>>, Error> {
        let replies = self.socket.dump(objects, &family.command(command, attributes))?;
        Ok(replies.iter().map(|reply| family.body(reply)).collect())
    }
}

impl GenericFamily {
    fn command(&self, number: u8, attributes: &[u8]) -> RawMessage {
        let header = vec![0; self.header_size as usize];
        command(self.id, number, self.version, &[header.as_slice(), attributes].concat())
    }

    fn body(&self, reply: &RawMessage) -> Vec<u8> {
        body(reply).get(self.header_size as usize..).unwrap_or_default().to_vec()
    }
}

fn command(family: u16, command: u8, version: u8, body: &[u8]) -> RawMessage {
    RawMessage { message_type: family, payload: [&[command, version, 0, 0], body].concat() }
}

/// Returns what follows `struct genlmsghdr`.
fn body(message: &RawMessage) -> &[u8] {
    message.payload.get(HEADER_LEN..).unwrap_or_default()
}

fn read_family(body: &[u8]) -> Option<GenericFamily> {
    let groups = attributes(attribute(body, MULTICAST_GROUPS).unwrap_or_default());
    let groups = groups.filter_map(|(_, group)| Some((text(group, GROUP_NAME)?, number(group, GROUP_ID)?)));
    Some(GenericFamily {
        id: u16::from_ne_bytes(attribute(body, FAMILY_ID)?.try_into().ok()?),
        name: text(body, FAMILY_NAME)?,
        version: number(body, VERSION)?.try_into().ok()?,
        header_size: number(body, HEADER_SIZE).unwrap_or(0),
        groups: groups.collect(),
    })
}

fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute(bytes, kind)?.try_into().ok()?))
}
