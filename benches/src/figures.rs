//! The figures of the benches, stored for the page that shows them.
//!
//! A bench prints its result for a person. If `FLANNEL_BENCH_FIGURES` names a file, it also appends each figure to it
//! as a line of JSON, which the program `bench-page` reads.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Spread;

/// The variable that names the file.
pub const FILE: &str = "FLANNEL_BENCH_FIGURES";

/// A quantity that was measured several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The bench.
    pub bench: String,
    /// The quantity and its unit, such as `first start, ms`.
    pub what: String,
    /// The series, such as a way to do the same.
    pub series: String,
    /// The size or case.
    pub at: String,
    /// The median of the rounds and their spread.
    pub spread: Spread,
}

/// Stores a figure for the page if `FLANNEL_BENCH_FIGURES` is set.
///
/// # Panics
///
/// Panics if the file cannot be written.
pub fn keep(bench: &str, what: &str, series: &str, at: impl ToString, spread: Spread) {
    let Some(file) = std::env::var_os(FILE) else { return };
    let (bench, what, series) = (bench.to_owned(), what.to_owned(), series.to_owned());
    let figure = Figure { bench, what, series, at: at.to_string(), spread };
    let mut line = serde_json::to_vec(&figure).unwrap();
    line.push(b'\n');
    OpenOptions::new().create(true).append(true).open(file).unwrap().write_all(&line).unwrap();
}

/// Reads stored figures.
///
/// # Errors
///
/// Fails if the file does not exist, or a line in it is not a figure.
pub fn read(file: &Path) -> std::io::Result<Vec<Figure>> {
    let text = std::fs::read_to_string(file)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
