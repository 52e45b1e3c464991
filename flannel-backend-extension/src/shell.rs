//! Running one command: what it is told goes in, what it writes comes out line by line, and it ends in time.

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

/// The shell that every Unix has.
const SHELL: &str = "/bin/sh";
/// Where programs are if the daemon's own environment does not say so.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much of a command's output is kept, in bytes: what goes into a lease is a key or an address.
const MOST_OUTPUT: usize = 64 << 10;
/// How many lines of a command go to the log, and how much of each, in characters.
const MOST_LINES: usize = 100;
const LONGEST_LINE: usize = 1000;
/// What the shell's end leaves unread in the pipe is there at once; a program that stays in the background holds the
/// pipe open for ever.
const REST: Duration = Duration::from_millis(100);

/// Runs commands, one at a time.
#[derive(Debug)]
pub(crate) struct Shell {
    namespace: Namespace,
    limit: Duration,
    turn: Mutex<()>,
    orders: watch::Sender<Orders>,
}

/// What was said to all that runs.
#[derive(Debug, Default)]
struct Orders {
    /// Nothing may run any more.
    stop: bool,
    /// How often what runs was to be killed.
    kills: u64,
}

/// One command, and what it is told.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    /// Its name in the configuration and, behind it, what it is run for.
    pub(crate) name: String,
    pub(crate) script: &'a str,
    pub(crate) variables: &'a [(&'static str, String)],
    pub(crate) input: &'a str,
}

impl Shell {
    pub(crate) fn new(namespace: Namespace, limit: Duration) -> Self {
        Self { namespace, limit, turn: Mutex::default(), orders: watch::Sender::default() }
    }

    /// Runs a command to its end, and returns what it wrote, without the white space around it. The error is one line
    /// that does not name the command.
    pub(crate) fn run(&self, call: &Call<'_>) -> Result<String, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let cannot = |error: io::Error| format!("{SHELL} cannot be run: {error}");
        let (ending, output) =
            self.namespace.run(|| self.execute(call)).and_then(|ran| ran).map_err(cannot)?;
        let limit = self.limit.as_secs();
        match ending {
            Ending::Ended(status) if !status.success() => Err(format!("{status}{}", output.last_words())),
            Ending::Ended(_) => output.whole(),
            Ending::TimedOut => Err(format!("did not end within {limit} s (CommandTimeout), and was killed")),
            Ending::Stopped => Err("was killed, because the daemon ends".to_owned()),
        }
    }

    /// Kills what runs.
    pub(crate) fn kill(&self) {
        self.orders.send_modify(|orders| orders.kills += 1);
    }

    /// Kills what runs, and lets nothing run any more.
    pub(crate) fn stop(&self) {
        self.orders.send_modify(|orders| orders.stop = true);
    }

    /// To be called on a thread that has no runtime; the program is born in its namespace.
    fn execute(&self, call: &Call<'_>) -> io::Result<(Ending, Output)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut output = Output::new(&call.name);
            let ending = self.attend(call, &mut output).await?;
            output.finish();
            Ok((ending, output))
        })
    }

    async fn attend(&self, call: &Call<'_>, output: &mut Output) -> io::Result<Ending> {
        let mut orders = self.orders.subscribe();
        if orders.borrow_and_update().stop {
            return Ok(Ending::Stopped);
        }
        let (mut child, mut pipe) = start(call)?;
        let group = child.id();
        let stdin = child.stdin.take();
        let ending = tokio::select! {
            status = child.wait() => Ending::Ended(status?),
            never = talk(stdin, call.input, &mut pipe, output) => match never {},
            () = tokio::time::sleep(self.limit) => Ending::TimedOut,
            _ = orders.changed() => Ending::Stopped,
        };
        if let (Some(group), Ending::TimedOut | Ending::Stopped) = (group, &ending) {
            sys::kill_group(group);
            child.wait().await?;
        }
        // A timeout means that somebody in the background holds the pipe.
        let _ = tokio::time::timeout(REST, read(&mut pipe, output)).await;
        Ok(ending)
    }
}

/// How a command came to its end.
enum Ending {
    Ended(ExitStatus),
    TimedOut,
    Stopped,
}

/// Starts a command in a process group of its own, with nothing in its environment but what it is told and a path.
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

/// Feeds a command and reads what it writes, for as long as it runs.
async fn talk(
    stdin: Option<tokio::process::ChildStdin>,
    input: &str,
    pipe: &mut pipe::Receiver,
    output: &mut Output,
) -> Infallible {
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command need not read what it is told.
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

/// What a command wrote to its standard output and standard error, which are one.
struct Output {
    name: String,
    kept: Vec<u8>,
    is_cut: bool,
    /// The line that has begun.
    line: Vec<u8>,
    lines: usize,
}

impl Output {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), kept: Vec::new(), is_cut: false, line: Vec::new(), lines: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = MOST_OUTPUT - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.is_cut |= bytes.len() > room;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.tell_line();
            }
        }
    }

    fn finish(&mut self) {
        if !self.line.is_empty() {
            self.tell_line();
        }
        if self.lines > MOST_LINES {
            tracing::info!("{}: {} more lines are left out", self.name, self.lines - MOST_LINES);
        }
    }

    fn tell_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).replace(char::is_control, " ");
        let line = line.trim_end();
        self.lines += usize::from(!line.is_empty());
        if !line.is_empty() && self.lines <= MOST_LINES {
            tracing::info!("{}: {line}", self.name);
        }
        self.line.clear();
    }

    /// The output of a command that did well.
    fn whole(self) -> Result<String, String> {
        if self.is_cut {
            return Err(format!("wrote more than {} KiB", MOST_OUTPUT >> 10));
        }
        Ok(String::from_utf8_lossy(&self.kept).trim().to_owned())
    }

    /// The last lines of one that did not, to stand behind its status.
    fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.split_off(lines.len().saturating_sub(3));
        let mut words = String::new();
        for (i, line) in last.iter().enumerate() {
            let line: String = line.chars().filter(|c| !c.is_control()).take(LONGEST_LINE).collect();
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
    fn both_outputs_come_back_as_one_without_the_white_space_around_it() {
        let script = "echo '  hello'; echo 'world  '; echo err >&2";
        assert_eq!(run(&shell(LONG), script, &[], ""), Ok("hello\nworld  \nerr".to_owned()));
    }

    #[test]
    fn a_command_knows_what_it_is_told_and_a_path_and_nothing_else() {
        let variables = [("SUBNET", "10.5.3.0/24".to_owned())];
        let output = run(&shell(LONG), "env; read line; echo \"stdin=$line\"", &variables, "data\n").unwrap();
        let mut lines: Vec<_> = output.lines().map(|line| line.split('=').next().unwrap()).collect();
        lines.retain(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(name));
        lines.sort_unstable();
        assert_eq!(lines, ["PATH", "SUBNET", "stdin"]);
        assert!(output.contains("SUBNET=10.5.3.0/24") && output.ends_with("stdin=data"), "{output}");
    }

    #[test]
    fn input_larger_than_any_pipe_holds_up_nobody() {
        let input = "0123456789abcdef\n".repeat(60_000);
        assert_eq!(run(&shell(LONG), "wc -c", &[], &input), Ok(input.len().to_string()));
        assert_eq!(run(&shell(LONG), "true", &[], &input), Ok(String::new()), "nobody need read it");
    }

    #[test]
    fn a_failure_is_the_status_and_the_last_lines() {
        let error =
            run(&shell(LONG), "echo a; echo b; echo c >&2; echo; echo d; exit 3", &[], "").unwrap_err();
        assert_eq!(error, "exit status: 3: b; c; d");
    }

    #[test]
    fn output_without_end_is_not_kept() {
        let error = run(&shell(LONG), "yes | head -c 1000000", &[], "").unwrap_err();
        assert_eq!(error, "wrote more than 64 KiB");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_all_that_it_started() {
        let note = env::temp_dir().join(format!("flannel-shell-{}", std::process::id()));
        let script = format!("sleep 1234 & echo $! >{}; sleep 1234", note.display());
        let error = run(&shell(Duration::from_secs(3)), &script, &[], "").unwrap_err();
        assert_eq!(error, "did not end within 3 s (CommandTimeout), and was killed");
        let pid = std::fs::read_to_string(&note).unwrap();
        std::fs::remove_file(&note).unwrap();
        let path = format!("/proc/{}/status", pid.trim());
        // Whoever inherits it may take its time to reap it.
        let is_alive = || std::fs::read_to_string(&path).is_ok_and(|status| !status.contains("State:\tZ"));
        let deadline = Instant::now() + LONG;
        while is_alive() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_alive());
    }

    #[test]
    fn what_a_command_leaves_in_the_background_is_not_waited_for() {
        let pid = run(&shell(LONG), "sleep 1234 & echo $!", &[], "").unwrap();
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
        run(&shell(LONG), &format!("kill {pid}"), &[], "").unwrap();
    }

    #[test]
    fn a_stop_kills_what_runs_and_what_would_run_next() {
        let shell = Arc::new(shell(LONG));
        let running = Arc::clone(&shell);
        let ran = thread::spawn(move || run(&running, "sleep 1234", &[], ""));
        thread::sleep(Duration::from_millis(50));
        shell.stop();
        assert_eq!(ran.join().unwrap().unwrap_err(), "was killed, because the daemon ends");
        assert!(run(&shell, "true", &[], "").is_err());
    }
}
