//! Files that a test makes and runs.
//!
//! The kernel runs no file that somebody has open for writing (`ETXTBSY` in `execve(2)`). What this process writes, every
//! program that another thread starts meanwhile holds open too, until it has become that program. So the files are written
//! by programs that have ended when these functions return.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes a script that everybody may run.
///
/// # Errors
/// Fails when the file cannot be written.
pub fn write_program(path: &Path, text: &str) -> io::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", "cat > \"$0\"; chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut child = command.spawn()?;
    // Closed at the end of the statement, which is the end of the text.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let status = child.wait()?;
    written.and_then(|()| succeeded(status.success(), path))
}

/// Copies a program to where everybody may run it.
///
/// # Errors
/// Fails when the file cannot be read or written.
pub fn copy_program(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("install").args(["-m", "755", "--"]).args([from, to]).status()?;
    succeeded(status.success(), to)
}

fn succeeded(is_success: bool, path: &Path) -> io::Result<()> {
    if is_success { Ok(()) } else { Err(io::Error::other(format!("{} cannot be written", path.display()))) }
}
