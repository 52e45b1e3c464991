//! Runs a program of the host, with a time limit.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use flannel_netlink::Namespace;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// The time limit of a program. It may have to wait for the lock of iptables.
const LIMIT: Duration = Duration::from_secs(30);
/// The limit of output in bytes: a rule takes some 100, and there are hosts with 100,000 rules.
const MOST_OUTPUT: u64 = 64 << 20;
/// Directories of system programs, searched after `PATH`.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It is not installed: install the package.
    #[error("{program} is not installed: apt-get install {package} (or dnf install {package})")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// The package that contains it.
        package: &'static str,
    },
    /// It exited with an error; retry.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: ExitStatus,
        /// Its error output, on one line.
        stderr: String,
    },
    /// It exceeded the time limit and was killed; retry.
    #[error("{program} timed out after {} s", LIMIT.as_secs())]
    TimedOut {
        /// The program.
        program: &'static str,
    },
    /// It could not be started, or its pipes failed.
    #[error("cannot run {program}")]
    Io {
        /// The program.
        program: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl ProgramError {
    /// Returns whether the program is not installed.
    #[must_use]
    pub fn is_not_installed(&self) -> bool {
        matches!(self, Self::NotInstalled { .. })
    }
}

/// A program, and the package that contains it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

impl Program {
    /// Runs it in a namespace and returns its standard output.
    pub(crate) async fn run(
        self,
        namespace: &Namespace,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, ProgramError> {
        let path = self.find()?;
        tracing::debug!(program = self.name, ?arguments, input, "running a program");
        let run = async {
            let mut command = Command::new(path);
            command.args(arguments).kill_on_drop(true);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            talk(spawn(namespace, command)?, input).await
        };
        let program = self.name;
        let ended = tokio::time::timeout(LIMIT, run).await.map_err(|_| ProgramError::TimedOut { program })?;
        let (status, output, stderr) = ended.map_err(|source| ProgramError::Io { program, source })?;
        if status.success() {
            Ok(output)
        } else {
            Err(ProgramError::Failed { program, status, stderr: one_line(&stderr) })
        }
    }

    /// Returns whether it is installed.
    pub(crate) fn is_installed(self) -> bool {
        self.find().is_ok()
    }

    fn find(self) -> Result<PathBuf, ProgramError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut directories = env::split_paths(&path).chain(env::split_paths(SYSTEM_DIRECTORIES));
        let found =
            directories.find_map(|directory| Some(directory.join(self.name)).filter(|path| path.is_file()));
        found.ok_or(ProgramError::NotInstalled { program: self.name, package: self.package })
    }
}

/// Returns whether a program is installed, in `PATH` or a directory of system programs.
#[must_use]
pub fn is_installed(program: &'static str) -> bool {
    Program { name: program, package: program }.is_installed()
}

/// Starts a command in a namespace: a process starts in the namespace of the thread that spawns it.
fn spawn(namespace: &Namespace, mut command: Command) -> io::Result<Child> {
    let runtime = Handle::current();
    namespace.run(move || {
        let _inside = runtime.enter();
        command.spawn()
    })?
}

/// Writes the input of a program and reads its output until it exits.
async fn talk(mut child: Child, input: &str) -> io::Result<(ExitStatus, String, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that exits early reports the reason itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), output, stderr_text) = tokio::join!(feed, read(stdout), read(stderr));
    Ok((child.wait().await?, output?, stderr_text?))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_OUTPUT).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 == MOST_OUTPUT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "output exceeds 64 MiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Joins the first lines of error output.
fn one_line(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAT: Program = Program { name: "cat", package: "coreutils" };
    const SH: Program = Program { name: "sh", package: "dash" };

    fn run(program: Program, arguments: &[&str], input: &str) -> Result<String, ProgramError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let here = Namespace::current().expect("namespace");
        runtime.block_on(program.run(&here, arguments, input))
    }

    #[test]
    fn input_larger_than_a_pipe_is_written_and_read_back() {
        let input = "0123456789abcdef\n".repeat(20_000);
        assert_eq!(run(CAT, &[], &input).expect("cat"), input);
    }

    #[test]
    fn errors_are_one_line_and_a_missing_program_names_its_package() {
        let error = run(SH, &["-c", "echo one >&2; echo; echo two >&2; exit 3"], "x").expect_err("exit 3");
        assert_eq!(error.to_string(), "sh failed (exit status: 3): one; two");
        let missing = Program { name: "no-such-program", package: "some-package" };
        let error = run(missing, &[], "").expect_err("missing");
        assert!(error.is_not_installed());
        let line =
            "no-such-program is not installed: apt-get install some-package (or dnf install some-package)";
        assert_eq!(error.to_string(), line);
    }
}
