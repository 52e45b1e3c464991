//! The kernel's rules for names of links.

use crate::error::Error;

/// `IFNAMSIZ` without the NUL at the end.
const NAME_MAX: usize = 15;

/// Refuses a name that the kernel would refuse, or cut at a NUL byte (`dev_valid_name`).
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let is_invalid =
        |byte: u8| byte == 0 || byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0x0b;
    if name.is_empty() || name.len() > NAME_MAX || name == "." || name == ".." || name.bytes().any(is_invalid)
    {
        return Err(Error::InvalidName(name.to_owned()));
    }
    Ok(())
}
