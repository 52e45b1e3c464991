//! Checks of single values. Each error is the end of a line that begins with the flag.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::go_duration;
use crate::log::LogFormat;

/// Checks how long a lease lasts: not so short that a registry that restarts ends it, not so long that a host that is
/// gone for good holds its subnet for ever.
pub(super) fn lease_ttl(ttl: Duration) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(60)..=Duration::from_secs(8760 * 3600);
    if RANGE.contains(&ttl) {
        Ok(ttl)
    } else {
        Err(format!("{} is not within 1m and 8760h", go_duration::format(ttl)))
    }
}

/// Checks how much of a lease is left when it is renewed. Bounds and words are upstream's.
pub(super) fn renew_margin(minutes: Option<i64>, ttl: Duration) -> Result<Option<Duration>, String> {
    let Some(minutes) = minutes else {
        return Ok(None);
    };
    let margin = match u64::try_from(minutes) {
        Ok(minutes @ 1..=1439) => Duration::from_secs(minutes * 60),
        _ => {
            return Err(format!(
                "Invalid subnet-lease-renew-margin option, out of acceptable range: {minutes} is not within 1 and 1439 \
                 minutes"
            ));
        }
    };
    if margin >= ttl {
        return Err(format!(
            "{minutes} minutes are not less than the {} of -subnet-lease-ttl",
            go_duration::format(ttl)
        ));
    }
    Ok(Some(margin))
}

/// Reads a time of up to a day.
pub(super) fn seconds(value: i64, least: u64) -> Result<Duration, String> {
    match u64::try_from(value) {
        Ok(seconds) if (least..=86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{value} is not within {least} and 86400 seconds")),
    }
}

/// Reads the address to publish; an empty value counts as not given.
pub(super) fn public_ip(text: &str) -> Result<Option<Ipv4Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv4Addr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid public IP address: {}", text.escape_debug())),
    }
}

/// The same for IPv6.
pub(super) fn public_ipv6(text: &str) -> Result<Option<Ipv6Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv6Addr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid public IPv6 address: {}", text.escape_debug())),
    }
}

/// Reads an address of either family; an empty value counts as not given.
pub(super) fn ip(text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid IP address: {}", text.escape_debug())),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
}

/// Reads an address to listen at; that of all interfaces is one.
pub(super) fn listening_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("invalid IP address: {}", text.escape_debug()))
}

pub(super) fn port(port: i64) -> Result<u16, String> {
    u16::try_from(port).map_err(|_| format!("{port} is not within 0 and 65535"))
}

/// Reads where the status is told: beside the subnet file unless it is said, so that two daemons on one host have two
/// sockets.
pub(crate) fn status_socket(path: &str, subnet_file: &str) -> Option<PathBuf> {
    match path {
        "off" => None,
        "" => Some(format!("{subnet_file}.sock").into()),
        path => Some(path.into()),
    }
}

/// Reads how often other hosts are probed; never if it is zero.
pub(super) fn mesh_interval(interval: Duration) -> Result<Option<Duration>, String> {
    const RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
    if interval.is_zero() {
        return Ok(None);
    }
    if RANGE.contains(&interval) {
        Ok(Some(interval))
    } else {
        Err(format!("{} is not within 1s and 24h", go_duration::format(interval)))
    }
}

/// Reads the port at which hosts that are probed answer.
pub(super) fn mesh_port(number: i64) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{number} is not within 1 and 65535"))
}
