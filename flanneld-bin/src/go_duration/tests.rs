use super::*;

#[test]
fn durations_are_parsed_as_in_go() {
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
    for text in ["", "+", "24", "h", ".h", "-1h", "1d", "1 h", "1h ", "1..5s", "9999999999h", "1h2", "٣h"] {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn durations_are_formatted_as_in_go() {
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
        assert_eq!(format(Duration::from_nanos(nanos)), text);
    }
}
