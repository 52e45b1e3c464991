//! What VXLAN hosts tell each other in their leases: the address of their tunnel device.

use flannel_core::Json;
use flannel_core::json::{JsonError, Object};
use flannel_netlink::Mac;

/// Writes the backend data of a host.
pub(crate) fn write(vni: u32, mac: Mac) -> Json {
    let text = format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#);
    Json::parse(&text)
        .expect("the text above is JSON: a number, and a string of hexadecimal digits and colons")
}

/// Reads the device's address from the backend data of a peer. Its VNI, if it says one, is not needed: a lease is
/// only read by hosts of the same network.
pub(crate) fn read(data: Option<&Json>) -> Result<Mac, AttrsError> {
    let object: Object<'_> = data.ok_or(AttrsError::Missing("BackendData"))?.object()?;
    let text = object.text("VtepMAC")?.ok_or(AttrsError::Missing("VtepMAC"))?;
    let mac: Option<Mac> = text.parse().ok();
    // No device has another kind of address, and the kernel refuses it in its tables.
    let a_devices = mac.filter(|mac| mac.is_unicast() && *mac != Mac([0; 6]));
    a_devices.ok_or_else(|| AttrsError::NotAMac(text.into_owned()))
}

/// Why the backend data of a peer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttrsError {
    /// A part is missing.
    #[error("its lease has no {0}")]
    Missing(&'static str),
    /// It is not the JSON that was expected.
    #[error("BackendData of its lease: {0}")]
    Json(#[from] JsonError),
    /// The address is none that a device can have.
    #[error("VtepMAC of its lease is not the address of a device: {0:?}")]
    NotAMac(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        read(Some(&Json::parse(text).unwrap())).map(|mac| mac.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_own_data_is_written_as_flannel_writes_it() {
        let mac = Mac([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]);
        assert_eq!(write(1, mac).as_str(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
    }

    #[test]
    fn data_of_every_release_is_read() {
        for text in [
            r#"{"VtepMAC":"ce:9c:a9:08:50:03"}"#,
            r#"{"VNI":1,"VtepMAC":"ce:9c:a9:08:50:03"}"#,
            r#"{"VNI":"odd","vtepmac":"CE-9C-A9-08-50-03","x":1}"#,
            r#"{"VtepMAC":"ce9c.a908.5003"}"#,
        ] {
            assert_eq!(parse(text).as_deref(), Ok("ce:9c:a9:08:50:03"), "{text}");
        }
    }

    #[test]
    fn data_that_cannot_be_used_is_refused_with_its_reason() {
        assert_eq!(read(None), Err(AttrsError::Missing("BackendData")));
        for (text, reason) in [
            ("{}", "its lease has no VtepMAC"),
            ("null", "its lease has no VtepMAC"),
            (
                r#"{"VtepMAC":5}"#,
                "BackendData of its lease: json: cannot unmarshal number 5 into VtepMAC, which must be a string",
            ),
            (r#"{"VtepMAC":"x"}"#, r#"VtepMAC of its lease is not the address of a device: "x""#),
            (
                r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
                r#"VtepMAC of its lease is not the address of a device: "00:00:00:00:00:00""#,
            ),
            (
                r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
                r#"VtepMAC of its lease is not the address of a device: "ff:ff:ff:ff:ff:ff""#,
            ),
        ] {
            assert_eq!(parse(text), Err(reason.to_owned()));
        }
    }
}
