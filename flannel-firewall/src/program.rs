//! Running a program of the host: input in, output back, within a time.

use std::env;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use flannel_netlink::Namespace;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// How long a program may take. It may have to wait for another one that holds the lock of iptables.
const LIMIT: Duration = Duration::from_secs(30);
/// How much of its output is read, in bytes: a rule has some 100, and hosts with 100,000 rules are told of.
const MOST_OUTPUT: u64 = 64 << 20;
/// Where system programs are, also if the path does not say so.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Why a program did not do what it was started for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It is not there: install the package.
    #[error("{program} is not installed: apt-get install {package} (or dnf install {package})")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// The package that brings it.
        package: &'static str,
    },
    /// It refused, for this reason; try again.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it said, on one line.
        said: String,
    },
    /// It did not end and was killed; try again.
    #[error("{program} did not end within {} s", LIMIT.as_secs())]
    TimedOut {
        /// The program.
        program: &'static str,
    },
    /// It could not be run.
    #[error("{program} cannot be run")]
    Io {
        /// The program.
        program: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl ProgramError {
    /// Tells whether the program is not there.
    #[must_use]
    pub fn is_not_installed(&self) -> bool {
        matches!(self, Self::NotInstalled { .. })
    }
}

/// A program, and the package that brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
}

impl Program {
    /// Runs it in a namespace, and returns what it wrote to its standard output.
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
        let (status, output, said) = ended.map_err(|source| ProgramError::Io { program, source })?;
        if status.success() {
            Ok(output)
        } else {
            Err(ProgramError::Failed { program, status, said: one_line(&said) })
        }
    }

    /// Tells whether it is installed.
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

/// Tells whether a program is installed, wherever system programs are.
#[must_use]
pub fn is_installed(program: &'static str) -> bool {
    Program { name: program, package: program }.is_installed()
}

/// Starts a command in a namespace: a program is born where the thread is that starts it.
fn spawn(namespace: &Namespace, mut command: Command) -> io::Result<Child> {
    let runtime = Handle::current();
    namespace.run(move || {
        let _inside = runtime.enter();
        command.spawn()
    })?
}

/// Feeds a program and reads what it writes until it ends.
async fn talk(mut child: Child, input: &str) -> io::Result<(ExitStatus, String, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that ends before it has read everything says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), output, said) = tokio::join!(feed, read(stdout), read(stderr));
    Ok((child.wait().await?, output?, said?))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_OUTPUT).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 == MOST_OUTPUT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it writes too much"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Joins the first lines of what a program complains of.
fn one_line(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
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
    fn input_larger_than_any_pipe_comes_back_as_output() {
        let input = "0123456789abcdef\n".repeat(20_000);
        assert_eq!(run(CAT, &[], &input).expect("cat"), input);
    }

    #[test]
    fn a_failure_is_one_line_and_a_missing_program_comes_with_its_package() {
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
