//! Tasks of the repository.
//!
//! `cargo run -p xtask -- manual` writes the man page, `dist/flanneld.8`, and `docs/flags.md`.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

mod manual;
mod markdown;
mod roff;

/// The generated files, relative to the repository's root, and their contents.
fn generated_files() -> [(&'static str, String); 2] {
    let manual = manual::manual();
    [("dist/flanneld.8", roff::page(&manual)), ("docs/flags.md", markdown::page(&manual))]
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

fn write_manual() -> io::Result<()> {
    generated_files().into_iter().try_for_each(|(path, text)| fs::write(repository().join(path), text))
}

#[expect(clippy::print_stderr, reason = "a command for developers")]
fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["manual"] => write_manual().map_err(|error| error.to_string()),
        _ => Err("usage: cargo run -p xtask -- manual".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_files_are_current() {
        for (path, text) in generated_files() {
            let on_disk = fs::read_to_string(repository().join(path)).expect("the file exists");
            assert!(on_disk == text, "{path} is outdated: run scripts/flags");
        }
    }
}
