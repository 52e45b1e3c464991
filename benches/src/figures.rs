//! What the benches measured, kept for the page that shows it.
//!
//! A bench prints its result for a person. Where `FLANNEL_BENCH_FIGURES` names a file, it also appends every figure to
//! that, one JSON object on a line; the program `bench-page` reads them.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Spread;

/// The name of the variable that names the file.
pub const FILE: &str = "FLANNEL_BENCH_FIGURES";

/// One number that was measured several times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Which bench measured it.
    pub bench: String,
    /// What it is, with its unit, such as `first start, ms`.
    pub what: String,
    /// Of which way of doing it.
    pub series: String,
    /// At which size or in which case.
    pub at: String,
    /// The rounds, summed up.
    pub spread: Spread,
}

/// Keeps a figure for the page, if one is to be made.
///
/// # Panics
///
/// If the file cannot be written.
pub fn keep(bench: &str, what: &str, series: &str, at: impl ToString, spread: Spread) {
    let Some(file) = std::env::var_os(FILE) else { return };
    let (bench, what, series) = (bench.to_owned(), what.to_owned(), series.to_owned());
    let figure = Figure { bench, what, series, at: at.to_string(), spread };
    let mut line = serde_json::to_vec(&figure).unwrap();
    line.push(b'\n');
    OpenOptions::new().create(true).append(true).open(file).unwrap().write_all(&line).unwrap();
}

/// Reads the figures that were kept.
///
/// # Errors
///
/// If there is no such file, or a line in it is not a figure.
pub fn read(file: &Path) -> std::io::Result<Vec<Figure>> {
    let text = std::fs::read_to_string(file)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
