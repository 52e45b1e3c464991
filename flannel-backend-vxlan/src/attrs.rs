//! The backend data of a lease: the MAC address of the host's tunnel device.

use flannel_core::Json;
use flannel_core::json::{JsonError, Object};
use flannel_netlink::Mac;

/// Encodes the backend data of a host.
pub(crate) fn write(vni: u32, mac: Mac) -> Json {
    let text = format!(r#"{{"VNI":{vni},"VtepMAC":"{mac}"}}"#);
    Json::parse(&text)
        .expect("the text above is JSON: a number, and a string of hexadecimal digits and colons")
}

/// Reads the MAC address from the backend data of a peer. Ignores the VNI, because all leases are from one network.
pub(crate) fn read(data: Option<&Json>) -> Result<Mac, AttrsError> {
    let object: Object<'_> = data.ok_or(AttrsError::Missing("BackendData"))?.object()?;
    let text = object.text("VtepMAC")?.ok_or(AttrsError::Missing("VtepMAC"))?;
    let mac: Option<Mac> = text.parse().ok();
    // The kernel refuses other addresses in its tables.
    let usable = mac.filter(|mac| mac.is_unicast() && *mac != Mac([0; 6]));
    usable.ok_or_else(|| AttrsError::NotADeviceAddress(text.into_owned()))
}

/// Why the backend data of a peer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttrsError {
    /// A member is missing.
    #[error("its lease has no {0}")]
    Missing(&'static str),
    /// It is not the expected JSON.
    #[error("BackendData of its lease: {0}")]
    Json(#[from] JsonError),
    /// No device can have the address.
    #[error("VtepMAC of its lease is {0:?}, expected the MAC address of a device")]
    NotADeviceAddress(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        read(Some(&Json::parse(text).unwrap())).map(|mac| mac.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn data_is_encoded_as_upstream_does() {
        let mac = Mac([0xc6, 0xd2, 0x32, 0x6f, 0x8f, 0x44]);
        assert_eq!(write(1, mac).as_str(), r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#);
    }

    #[test]
    fn data_of_every_upstream_release_is_read() {
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
    fn unusable_data_is_refused_with_a_reason() {
        assert_eq!(read(None), Err(AttrsError::Missing("BackendData")));
        for (text, reason) in [
            ("{}", "its lease has no VtepMAC"),
            ("null", "its lease has no VtepMAC"),
            (
                r#"{"VtepMAC":5}"#,
                "BackendData of its lease: json: cannot unmarshal number 5 into VtepMAC, which must be a string",
            ),
            (r#"{"VtepMAC":"x"}"#, r#"VtepMAC of its lease is "x", expected the MAC address of a device"#),
            (
                r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
                r#"VtepMAC of its lease is "00:00:00:00:00:00", expected the MAC address of a device"#,
            ),
            (
                r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
                r#"VtepMAC of its lease is "ff:ff:ff:ff:ff:ff", expected the MAC address of a device"#,
            ),
        ] {
            assert_eq!(parse(text), Err(reason.to_owned()));
        }
    }
}
