//! Generates the page in `docs/benchmarks` from the figures of the benches.
//!
//! ```text
//! bench-page FIGURES DIRECTORY     # writes DIRECTORY/README.md and its plots
//! ```

#![allow(clippy::print_stderr, reason = "a program prints its errors")]

mod plot;
mod sections;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flannel_benches::figures;

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [file, directory] = arguments.as_slice() else {
        eprintln!("usage: bench-page FIGURES DIRECTORY");
        return ExitCode::from(2);
    };
    match write(file, directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-page: {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn write(file: &Path, directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let figures = figures::read(file)?;
    std::fs::create_dir_all(directory)?;
    let mut page = sections::HEAD.replace("{machine}", &flannel_benches::machine());
    for section in sections::SECTIONS {
        page.push_str(&section.write(&figures, directory)?);
    }
    std::fs::write(directory.join("README.md"), page)?;
    Ok(())
}
