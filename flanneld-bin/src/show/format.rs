//! Text for people: columns, colours, times.

use std::env;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

/// Whether to colour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    /// Colours what goes to a terminal, unless `NO_COLOR` says not to (no-color.org).
    pub(crate) fn where_it_shows() -> Self {
        let is_plain = || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(io::stdout().is_terminal() && !is_plain())
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(crate) fn doubtful(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    pub(crate) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    /// Selects a rendition (SGR of ECMA-48), and the default one behind the text.
    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Text from elsewhere, such as a key in the registry, without what a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// A time in its two largest units, such as `2h5m`.
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

/// Several things with commas between.
pub(crate) fn list<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(", ")
}

/// A number with its unit, such as `3.2 MiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Rows whose cells stand below each other, with two blanks between.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

/// What stands in a place of a table.
pub(crate) struct Cell {
    /// What it shows, which counts for the width.
    text: String,
    /// The same with its colour.
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

impl Table {
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Writes it; no line ends with blanks.
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
