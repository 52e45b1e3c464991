//! Executable files that a test writes.
//!
//! The kernel does not execute a file that is open for writing (`ETXTBSY` in `execve(2)`). A program that another
//! thread starts meanwhile inherits this process's descriptors until it execs. So other programs write these files, and
//! have ended when these functions return.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes a script that every user may execute.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_program(path: &Path, text: &str) -> io::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-e", "-c", "cat > \"$0\"; chmod 755 \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut child = command.spawn()?;
    // Dropped at the end of the statement, which ends the input.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
    let status = child.wait()?;
    written.and_then(|()| succeeded(status.success(), path))
}

/// Copies a program to a path where every user may execute it.
///
/// # Errors
/// Fails if the file cannot be read or written.
pub fn copy_program(from: &Path, to: &Path) -> io::Result<()> {
    let status = Command::new("install").args(["-m", "755", "--"]).args([from, to]).status()?;
    succeeded(status.success(), to)
}

fn succeeded(is_success: bool, path: &Path) -> io::Result<()> {
    if is_success { Ok(()) } else { Err(io::Error::other(format!("{} cannot be written", path.display()))) }
}
