//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

/// A 48-bit Ethernet (MAC) address, displayed as `0e:2a:00:00:00:01`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Mac(pub [u8; 6]);

/// The text is not a MAC address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a MAC address; expected a form like 0e:2a:00:00:00:01")]
pub struct MacParseError;

impl Mac {
    /// Returns whether the address is unicast: the lowest bit of the first byte is clear (IEEE 802-2014,
    /// 8.2).
    pub fn is_unicast(self) -> bool {
        self.0[0] & 0x01 == 0
    }

    /// Reads a link-layer attribute; `None` if it is not 6 bytes long.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Parses the three forms that Go's `net.ParseMAC` accepts, in any case: `0e:2a:00:00:00:01`,
/// `0e-2a-00-00-00-01` and `0e2a.0000.0001`.
impl FromStr for Mac {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, MacParseError> {
        let (separator, digits) = match text.as_bytes().get(2) {
            Some(b':') => (':', 2),
            Some(b'-') => ('-', 2),
            _ => ('.', 4),
        };
        let mut mac = [0; 6];
        let mut bytes = mac.iter_mut();
        for group in text.split(separator) {
            if group.len() != digits {
                return Err(MacParseError);
            }
            for pair in group.as_bytes().chunks_exact(2) {
                *bytes.next().ok_or(MacParseError)? = hex(pair[0])? << 4 | hex(pair[1])?;
            }
        }
        if bytes.next().is_some() { Err(MacParseError) } else { Ok(Self(mac)) }
    }
}

fn hex(digit: u8) -> Result<u8, MacParseError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(MacParseError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x0a, 0x00, 0x5e, 0xff, 0x10, 0x09]);

    #[test]
    fn every_common_form_is_parsed() {
        for text in ["0a:00:5e:ff:10:09", "0A-00-5E-FF-10-09", "0a00.5EFF.1009"] {
            assert_eq!(text.parse(), Ok(MAC), "{text}");
        }
    }

    #[test]
    fn the_display_form_has_colons_and_lower_case() {
        assert_eq!(MAC.to_string(), "0a:00:5e:ff:10:09");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "0a",
            "0a:00:5e:ff:10",
            "0a:00:5e:ff:10:09:00:00",
            "0a:00:5e:ff:10:0",
            "0a:00:5e:ff:10:009",
            "0a:00:5e:ff:10-09",
            "0a:00:5e:ff:10:0g",
            "0a:00:5e:ff:10:+9",
            "0a005eff1009",
            "0a00.5eff",
            ":a:00:5e:ff:10:09",
            "é:00:5e:ff:10:09",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(MacParseError), "{text}");
        }
    }
}
