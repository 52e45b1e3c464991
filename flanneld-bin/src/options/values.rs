//! Checks of single values. An error completes a line that starts with the name of the flag.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::go_duration;
use crate::log::LogFormat;

/// Checks the lease TTL: long enough to survive a restart of the registry, short enough to free the subnets of hosts that
/// are gone.
pub(super) fn lease_ttl(ttl: Duration) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(60)..=Duration::from_secs(8760 * 3600);
    if RANGE.contains(&ttl) {
        Ok(ttl)
    } else {
        Err(format!("{} is not within 1m and 8760h", go_duration::format(ttl)))
    }
}

/// Checks the renew margin. Bounds and wording are upstream's.
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

/// Checks a number of seconds, at most a day.
pub(super) fn seconds(value: i64, least: u64) -> Result<Duration, String> {
    match u64::try_from(value) {
        Ok(seconds) if (least..=86_400).contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{value} is not within {least} and 86400 seconds")),
    }
}

/// Parses the IPv4 address to publish; an empty value counts as unset.
pub(super) fn public_ip(text: &str) -> Result<Option<Ipv4Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv4Addr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid public IP address: {}", text.escape_debug())),
    }
}

/// Parses the IPv6 address to publish; an empty value counts as unset.
pub(super) fn public_ipv6(text: &str) -> Result<Option<Ipv6Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv6Addr>() {
        Ok(address) if !address.is_unspecified() => Ok(Some(address)),
        _ => Err(format!("invalid public IPv6 address: {}", text.escape_debug())),
    }
}

/// Parses an address of either family; an empty value counts as unset.
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

/// Parses an address to listen on, which may be unspecified.
pub(super) fn listening_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("invalid IP address: {}", text.escape_debug()))
}

pub(super) fn port(port: i64) -> Result<u16, String> {
    u16::try_from(port).map_err(|_| format!("{port} is not within 0 and 65535"))
}

/// Returns the path of the status socket, by default next to the subnet file, so that two daemons on one host have their
/// own.
pub(crate) fn status_socket(path: &str, subnet_file: &str) -> Option<PathBuf> {
    match path {
        "off" => None,
        "" => Some(format!("{subnet_file}.sock").into()),
        path => Some(path.into()),
    }
}

/// Checks the interval of the mesh probes; `None` if it is zero.
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

/// Checks the port of the mesh probes.
pub(super) fn mesh_port(number: i64) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{number} is not within 1 and 65535"))
}
