//! Times as Go prints them (<https://pkg.go.dev/time#Duration.String>), because people and scripts know the lines, and as
//! it reads them (<https://pkg.go.dev/time#ParseDuration>).

use std::time::Duration;

/// Writes a time such as `22h59m59.999126138s`, `1.5s`, `250ms` or `0s`.
pub(crate) fn duration(time: Duration) -> String {
    let (seconds, nanos) = (time.as_secs(), time.subsec_nanos());
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

/// Writes a number with its last `places` digits behind the point, without zeros at the end.
fn decimal(number: u64, places: u32) -> String {
    let unit = 10_u64.pow(places);
    let (whole, fraction) = (number / unit, number % unit);
    let width = places as usize;
    format!("{whole}.{fraction:0width$}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Reads a time such as `24h`, `1h30m` or `1.5s`. One below zero, and one of more than 292 years, is none.
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
        let (number, behind) = rest.split_at(end);
        let end = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        nanos = nanos.checked_add(part(number, unit_nanos(unit)?)?)?;
        rest = behind;
    }
    i64::try_from(nanos).is_ok().then(|| Duration::from_nanos(nanos))
}

/// Reads one number of units. What is behind the point counts down to the nanosecond.
fn part(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()?.checked_mul(unit)? };
    let (mut nanos, mut place) = (0, unit);
    for digit in fraction.chars() {
        place /= 10;
        nanos += place * u64::from(digit.to_digit(10)?);
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
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("+24h", 86_400_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("24h0m0s", 86_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5m", 30_000_000_000),
            ("1.h", 3_600_000_000_000),
            ("3ms7µs1ns", 3_007_001),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "+", "24", "h", ".h", "-1h", "1d", "1 h", "1h ", "1..5s", "9999999999h", "1h2", "٣h"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5µs"),
            (250_000_000, "250ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (82_799_999_126_138, "22h59m59.999126138s"),
            (86_400_000_000_000, "24h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), text);
        }
    }
}
