//! Runs one shell command with a time limit: passes its input, logs its output line by line and returns it.

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use flannel_netlink::Namespace;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::sys;

/// The POSIX shell.
const SHELL: &str = "/bin/sh";
/// `PATH` of commands if the process has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The most output of a command that is kept, in bytes; `BackendData` is a key or an address.
const MAX_OUTPUT: usize = 64 << 10;
/// The most lines of a command's output that are logged, and the longest, in bytes.
const MAX_LINES: usize = 100;
const MAX_LINE: usize = 1000;
/// The time to read what is left in the pipe after the shell exits; a background process may hold the pipe open for ever.
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// Runs commands, one at a time.
#[derive(Debug)]
pub(crate) struct Shell {
    namespace: Namespace,
    limit: Duration,
    /// Held while a command runs.
    running: Mutex<()>,
    signals: watch::Sender<Signals>,
}

/// Requests to running commands.
#[derive(Debug, Default)]
struct Signals {
    /// No further command may run.
    stop: bool,
    /// The number of requests to kill the running command.
    kills: u64,
}

/// One command with its environment and input.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    /// Its name in the configuration, followed by its peer.
    pub(crate) name: String,
    pub(crate) script: &'a str,
    pub(crate) variables: &'a [(&'static str, String)],
    pub(crate) input: &'a str,
}

impl Shell {
    pub(crate) fn new(namespace: Namespace, limit: Duration) -> Self {
        Self { namespace, limit, running: Mutex::default(), signals: watch::Sender::default() }
    }

    /// Runs a command to its end and returns its output without surrounding white space. An error is one line that
    /// doesn't name the command.
    pub(crate) fn run(&self, call: &Call<'_>) -> Result<String, String> {
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let cannot = |error: io::Error| format!("failed to run {SHELL}: {error}");
        let (ending, output) =
            self.namespace.run(|| self.execute(call)).and_then(|ran| ran).map_err(cannot)?;
        let limit = self.limit.as_secs();
        match ending {
            ExitReason::Ended(status) if !status.success() => Err(format!("{status}{}", output.last_lines())),
            ExitReason::Ended(_) => output.whole(),
            ExitReason::TimedOut => {
                Err(format!("did not end within {limit} s (CommandTimeout) and was killed"))
            }
            ExitReason::Stopped => Err("was killed because the daemon is stopping".to_owned()),
        }
    }

    /// Kills the running command.
    pub(crate) fn kill(&self) {
        self.signals.send_modify(|signals| signals.kills += 1);
    }

    /// Kills the running command and refuses further ones.
    pub(crate) fn stop(&self) {
        self.signals.send_modify(|signals| signals.stop = true);
    }

    /// Must be called on a thread without a runtime; the process starts in that thread's namespace.
    fn execute(&self, call: &Call<'_>) -> io::Result<(ExitReason, Output)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut output = Output::new(&call.name);
            let ending = self.supervise(call, &mut output).await?;
            output.finish();
            Ok((ending, output))
        })
    }

    async fn supervise(&self, call: &Call<'_>, output: &mut Output) -> io::Result<ExitReason> {
        let mut signals = self.signals.subscribe();
        if signals.borrow_and_update().stop {
            return Ok(ExitReason::Stopped);
        }
        let (mut child, mut pipe) = start(call)?;
        let group = child.id();
        let stdin = child.stdin.take();
        let ending = tokio::select! {
            status = child.wait() => ExitReason::Ended(status?),
            never = exchange(stdin, call.input, &mut pipe, output) => match never {},
            () = tokio::time::sleep(self.limit) => ExitReason::TimedOut,
            _ = signals.changed() => ExitReason::Stopped,
        };
        if let (Some(group), ExitReason::TimedOut | ExitReason::Stopped) = (group, &ending) {
            sys::kill_group(group);
            child.wait().await?;
        }
        // On a timeout a background process holds the pipe.
        let _ = tokio::time::timeout(DRAIN_TIME, read(&mut pipe, output)).await;
        Ok(ending)
    }
}

/// How a command ended.
enum ExitReason {
    Ended(ExitStatus),
    TimedOut,
    Stopped,
}

/// Starts a command in its own process group, with only `PATH` and the given variables in its environment.
fn start(call: &Call<'_>) -> io::Result<(Child, pipe::Receiver)> {
    let (ours, theirs) = io::pipe()?;
    let mut command = Command::new(SHELL);
    command.arg("-c").arg(call.script).env_clear().env("PATH", path());
    command.envs(call.variables.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(theirs.try_clone()?).stderr(theirs);
    let child = command.process_group(0).kill_on_drop(true).spawn()?;
    Ok((child, pipe::Receiver::from_owned_fd(OwnedFd::from(ours))?))
}

fn path() -> OsString {
    env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Writes a command's input and reads its output for as long as the command runs.
async fn exchange(
    stdin: Option<tokio::process::ChildStdin>,
    input: &str,
    pipe: &mut pipe::Receiver,
    output: &mut Output,
) -> Infallible {
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command may ignore its input.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    tokio::join!(feed, read(pipe, output));
    std::future::pending().await
}

async fn read(pipe: &mut pipe::Receiver, output: &mut Output) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        output.take(&buffer[..length]);
    }
}

/// A command's standard output and standard error, combined.
struct Output {
    name: String,
    kept: Vec<u8>,
    is_cut: bool,
    /// The incomplete last line.
    line: Vec<u8>,
    lines: usize,
}

impl Output {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), kept: Vec::new(), is_cut: false, line: Vec::new(), lines: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.is_cut |= bytes.len() > room;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.log_line();
            }
        }
    }

    fn finish(&mut self) {
        if !self.line.is_empty() {
            self.log_line();
        }
        if self.lines > MAX_LINES {
            tracing::info!("{}: omitted {} more lines of output", self.name, self.lines - MAX_LINES);
        }
    }

    fn log_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).replace(char::is_control, " ");
        let line = line.trim_end();
        self.lines += usize::from(!line.is_empty());
        if !line.is_empty() && self.lines <= MAX_LINES {
            tracing::info!("{}: {line}", self.name);
        }
        self.line.clear();
    }

    /// Returns the output of a successful command.
    fn whole(self) -> Result<String, String> {
        if self.is_cut {
            return Err(format!("wrote more than {} KiB", MAX_OUTPUT >> 10));
        }
        Ok(String::from_utf8_lossy(&self.kept).trim().to_owned())
    }

    /// Returns the last lines of a failed command, to follow its exit status.
    fn last_lines(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.split_off(lines.len().saturating_sub(3));
        let mut words = String::new();
        for (i, line) in last.iter().enumerate() {
            let line: String = line.chars().filter(|c| !c.is_control()).take(MAX_LINE).collect();
            let _ = write!(words, "{}{line}", if i == 0 { ": " } else { "; " });
        }
        words
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    fn shell(limit: Duration) -> Shell {
        Shell::new(Namespace::current().unwrap(), limit)
    }

    fn run(
        shell: &Shell,
        script: &str,
        variables: &[(&'static str, String)],
        input: &str,
    ) -> Result<String, String> {
        shell.run(&Call { name: "Test".to_owned(), script, variables, input })
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn standard_output_and_error_are_combined_and_trimmed() {
        let script = "echo '  hello'; echo 'world  '; echo err >&2";
        assert_eq!(run(&shell(LONG), script, &[], ""), Ok("hello\nworld  \nerr".to_owned()));
    }

    #[test]
    fn a_command_sees_only_its_variables_and_a_path() {
        let variables = [("SUBNET", "10.5.3.0/24".to_owned())];
        let output = run(&shell(LONG), "env; read line; echo \"stdin=$line\"", &variables, "data\n").unwrap();
        let mut lines: Vec<_> = output.lines().map(|line| line.split('=').next().unwrap()).collect();
        lines.retain(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name));
        lines.sort_unstable();
        assert_eq!(lines, ["PATH", "SUBNET", "stdin"]);
        assert!(output.contains("SUBNET=10.5.3.0/24") && output.ends_with("stdin=data"), "{output}");
    }

    #[test]
    fn input_larger_than_a_pipe_does_not_block() {
        let input = "0123456789abcdef\n".repeat(60_000);
        assert_eq!(run(&shell(LONG), "wc -c", &[], &input), Ok(input.len().to_string()));
        assert_eq!(
            run(&shell(LONG), "true", &[], &input),
            Ok(String::new()),
            "a command may ignore its input"
        );
    }

    #[test]
    fn a_failure_shows_the_exit_status_and_the_last_lines() {
        let error =
            run(&shell(LONG), "echo a; echo b; echo c >&2; echo; echo d; exit 3", &[], "").unwrap_err();
        assert_eq!(error, "exit status: 3: b; c; d");
    }

    #[test]
    fn excessive_output_is_an_error() {
        let error = run(&shell(LONG), "yes | head -c 1000000", &[], "").unwrap_err();
        assert_eq!(error, "wrote more than 64 KiB");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let note = env::temp_dir().join(format!("flannel-shell-{}", std::process::id()));
        let script = format!("sleep 1234 & echo $! >{}; sleep 1234", note.display());
        let error = run(&shell(Duration::from_secs(3)), &script, &[], "").unwrap_err();
        assert_eq!(error, "did not end within 3 s (CommandTimeout) and was killed");
        let pid = std::fs::read_to_string(&note).unwrap();
        std::fs::remove_file(&note).unwrap();
        let path = format!("/proc/{}/status", pid.trim());
        // The process that inherits it may reap it late.
        let is_alive = || std::fs::read_to_string(&path).is_ok_and(|status| !status.contains("State:\tZ"));
        let deadline = Instant::now() + LONG;
        while is_alive() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_alive());
    }

    #[test]
    fn background_processes_of_a_command_do_not_delay_it() {
        let pid = run(&shell(LONG), "sleep 1234 & echo $!", &[], "").unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        run(&shell(LONG), &format!("kill {pid}"), &[], "").unwrap();
    }

    #[test]
    fn a_stop_kills_the_running_command_and_refuses_the_next() {
        let shell = Arc::new(shell(LONG));
        let running = Arc::clone(&shell);
        let ran = thread::spawn(move || run(&running, "sleep 1234", &[], ""));
        thread::sleep(Duration::from_millis(50));
        shell.stop();
        assert_eq!(ran.join().unwrap().unwrap_err(), "was killed because the daemon is stopping");
        assert!(run(&shell, "true", &[], "").is_err());
    }
}
