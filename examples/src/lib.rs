//! What examples share: words and tables on a terminal.
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::io::Write as _;
use std::time::Instant;

/// One line of progress: what is being done, and when it is done what came of it.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Says what begins, and leaves the line open.
    #[must_use]
    pub fn begin(what: &str) -> Self {
        print!("  {what:<10} ");
        flush();
        Self { started: Instant::now() }
    }

    /// Says what came of it, and how long it took.
    pub fn done(self, result: &str) {
        println!("{result}  ({} ms)", self.started.elapsed().as_millis());
    }
}

fn flush() {
    // A closed standard output leaves nobody to show it to.
    let _ = std::io::stdout().flush();
}

/// Rows of words under a heading, each column as wide as its widest word.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: bool,
}

impl Table {
    /// Starts with the heading; words stand at the left of their columns.
    pub fn new<S: Into<String>>(heading: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![heading.into_iter().map(Into::into).collect()], right: false }
    }

    /// Puts the words of all columns but the first at the right, as is usual for numbers.
    #[must_use]
    pub fn of_numbers(self) -> Self {
        Self { right: true, ..self }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, words: impl IntoIterator<Item = S>) {
        self.rows.push(words.into_iter().map(Into::into).collect());
    }

    /// Shows the table.
    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width_of = |column| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|word: &String| word.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width_of(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let words = row.iter().zip(&widths).enumerate().map(|(column, (word, &width))| {
                if self.right && column > 0 { format!("{word:>width$}") } else { format!("{word:<width$}") }
            });
            let line = words.collect::<Vec<_>>().join("  ");
            println!("  {}", line.trim_end());
        }
        println!();
    }
}
