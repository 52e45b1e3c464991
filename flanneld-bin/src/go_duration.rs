//! Durations as Go formats (<https://pkg.go.dev/time#Duration.String>) and parses them
//! (<https://pkg.go.dev/time#ParseDuration>), as upstream's flags and log lines do.

use std::time::Duration;

/// Formats a duration, such as `22h59m59.999126138s`, `1.5s`, `250ms` or `0s`.
pub(crate) fn format(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 {
        return match nanos {
            0 => "0s".to_owned(),
            nanos if nanos < 1_000 => format!("{nanos}ns"),
            nanos if nanos < 1_000_000 => format!("{}µs", decimal(u64::from(nanos), 3)),
            nanos => format!("{}ms", decimal(u64::from(nanos), 6)),
        };
    }
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let rest = decimal(seconds % 60 * 1_000_000_000 + u64::from(nanos), 9);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// Formats `number` / 10^`places`, without trailing zeros.
fn decimal(number: u64, places: u32) -> String {
    let unit = 10_u64.pow(places);
    let (whole, fraction) = (number / unit, number % unit);
    let width = places as usize;
    format!("{whole}.{fraction:0width$}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Parses a duration, such as `24h`, `1h30m` or `1.5s`. Returns `None` for a negative one and for more than 292 years.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        nanos = nanos.checked_add(parse_part(number, unit_nanos(unit)?)?)?;
        rest = after;
    }
    i64::try_from(nanos).is_ok().then(|| Duration::from_nanos(nanos))
}

/// Parses one number of units. Digits of less than a nanosecond do not count.
fn parse_part(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.checked_mul(unit)? };
    let (mut nanos, mut digit_value) = (0, unit);
    for digit in fraction.chars() {
        digit_value /= 10;
        nanos += digit_value * u64::from(digit.to_digit(10)?);
    }
    whole.checked_add(nanos)
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
