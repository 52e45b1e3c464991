//! Formatting for terminals: columns, colours, durations, amounts.

use std::env;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use flannel_core::ProbeVerdict;

/// Whether to colour text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    /// Colours text on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(crate) fn automatic() -> Self {
        let is_plain = || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(io::stdout().is_terminal() && !is_plain())
    }

    /// Parses the value of `-color`.
    pub(crate) fn parse(color: &str) -> Result<Self, String> {
        match color {
            "auto" => Ok(Self::automatic()),
            "always" => Ok(Self(true)),
            "never" => Ok(Self(false)),
            other => Err(format!("{other:?} is not auto, always or never")),
        }
    }

    /// Colours text by a verdict.
    pub(crate) fn verdict(self, verdict: ProbeVerdict, text: &str) -> String {
        if verdict == ProbeVerdict::Reachable {
            self.good(text)
        } else if matches!(verdict, ProbeVerdict::TunnelBlocked | ProbeVerdict::Silent) {
            self.bad(text)
        } else {
            self.warning(text)
        }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn warning(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    /// Wraps text in a rendition (SGR of ECMA-48) and the default one.
    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Replaces control characters in text from outside, such as keys in the registry, which a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Formats a duration in its two largest units, such as `2h5m`.
pub(crate) fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds == 0 && time.subsec_millis() > 0 => {
            format!("{}ms", time.as_millis())
        }
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

/// Joins items with commas.
pub(crate) fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Formats an amount, such as `3.2 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Rows of aligned cells, two blanks apart.
#[derive(Default)]
pub(crate) struct TextTable {
    rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
pub(crate) struct Cell {
    /// The visible text, which determines the width.
    text: String,
    /// The text with colour codes.
    painted: String,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { painted: text.clone(), text }
    }

    pub(crate) fn painted(text: impl Into<String>, paint: impl FnOnce(&str) -> String) -> Self {
        let text = text.into();
        Self { painted: paint(&text), text }
    }
}

impl TextTable {
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Formats the table, without trailing blanks.
    pub(crate) fn write(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).map_or(0, |last| last + 1);
            for (column, cell) in row.iter().take(last).enumerate() {
                text.push_str(&cell.painted);
                if column + 1 < last {
                    let gap = widths[column] - cell.text.chars().count() + 2;
                    text.push_str(&" ".repeat(gap));
                }
            }
            text.push('\n');
        }
        text
    }
}
