//! Programs that run inside a namespace, with their log lines, and end with the test.
//!
//! The kernel can kill a child when its parent dies, but the parent is the *thread* that forked it. So one thread,
//! which lives as long as the process, starts all programs: if the process is killed, its programs die too.

use crate::sys;
use flannel_netlink::Namespace;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A running program whose standard error is collected line by line. Dropping it kills the program and its children.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Arc<Log>,
    collector: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `command` inside `namespace` with an empty standard input.
    ///
    /// The program gets a process group of its own, so that Ctrl-C in a terminal reaches only the parent, which then
    /// ends its programs in a suitable order.
    ///
    /// # Errors
    /// Fails if the program cannot be started or the namespace cannot be entered.
    pub fn spawn_in(namespace: &Namespace, command: Command) -> io::Result<Self> {
        Self::spawn_passing(namespace, command, Vec::new())
    }

    /// Starts a program like [`spawn_in`](Self::spawn_in), with open descriptors from number 3 on.
    pub(crate) fn spawn_passing(
        namespace: &Namespace,
        mut command: Command,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = spawn(namespace, command, descriptors)?;
        let log = Arc::new(Log::default());
        let collector = child.stderr.take().map(|stderr| {
            let log = Arc::clone(&log);
            thread::spawn(move || log.collect(stderr))
        });
        Ok(Self { child, log, collector })
    }

    /// Returns the process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on standard error that contains `text`, including earlier lines, and returns it.
    ///
    /// # Errors
    /// Contains whether the limit passed or the program closed its standard error, and the last lines.
    pub fn wait_for_line(&self, text: &str, limit: Duration) -> Result<String, LineNotFound> {
        self.log.wait_for(text, limit)
    }

    /// Returns the lines on standard error so far, at most the last 10,000.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.log.state.lock().unwrap_or_else(PoisonError::into_inner).lines.iter().cloned().collect()
    }

    /// Returns the exit status if the program has ended.
    ///
    /// # Errors
    /// Fails if the kernel does not know the process.
    pub fn exit_status(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends SIGTERM and waits for the program to end.
    ///
    /// # Errors
    /// Returns [`io::ErrorKind::TimedOut`] if the program still runs after `limit`; it keeps running.
    pub fn terminate(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        let name = format!("process {} has not ended {limit:?} after SIGTERM", self.id());
        let ended = crate::eventually(limit, || self.child.try_wait().ok().flatten());
        let status = ended.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, name))?;
        self.finish_log();
        Ok(status)
    }

    /// Sends SIGKILL to the program and its children, and reaps it.
    ///
    /// # Errors
    /// Fails if the kernel does not know the process.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            sys::signal_group(self.id(), libc::SIGKILL)?;
        }
        let status = self.child.wait()?;
        self.finish_log();
        Ok(status)
    }

    /// Sends `signal`, such as `libc::SIGSTOP`. Does nothing if the program has ended.
    ///
    /// # Errors
    /// Fails for an invalid signal number.
    pub fn signal(&mut self, signal: i32) -> io::Result<()> {
        // The process keeps its ID until it is reaped, so the signal cannot reach another process.
        match self.child.try_wait()? {
            Some(_) => Ok(()),
            None => sys::signal(self.id(), signal),
        }
    }

    /// Waits until every line of the ended program is collected.
    fn finish_log(&mut self) {
        // A grandchild may still hold the pipe; its lines are not waited for.
        let closed = |collector: &JoinHandle<()>| collector.is_finished();
        if let Some(collector) = self.collector.take()
            && crate::eventually(Duration::from_secs(5), || closed(&collector)).is_ok()
        {
            drop(collector.join());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(pid = self.child.id(), %error, "program could not be killed");
        }
    }
}

/// Runs `command` inside `namespace` to its end and returns its output.
///
/// # Errors
/// Fails if the program cannot be started or the namespace cannot be entered. A non-zero exit status is not an error.
pub fn output_in(namespace: &Namespace, mut command: Command) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn(namespace, command, Vec::new())?.wait_with_output()
}

/// Starts `command` inside `namespace` on the thread that starts all programs.
fn spawn(namespace: &Namespace, mut command: Command, descriptors: Vec<OwnedFd>) -> io::Result<Child> {
    sys::enter_before_exec(&mut command, namespace.clone(), std::process::id());
    // The order matters: the passed descriptors may replace that of the namespace.
    sys::pass_before_exec(&mut command, descriptors)?;
    let (answer, started) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that starts programs has ended");
    spawner()?.send(Start { command, answer }).map_err(|_| gone())?;
    started.recv().map_err(|_| gone())?
}

/// A request to the thread that starts all programs.
struct Start {
    command: Command,
    answer: mpsc::SyncSender<io::Result<Child>>,
}

/// Returns the channel to the thread that starts all programs of this process.
fn spawner() -> io::Result<mpsc::Sender<Start>> {
    static SPAWNER: OnceLock<mpsc::Sender<Start>> = OnceLock::new();
    if let Some(spawner) = SPAWNER.get() {
        return Ok(spawner.clone());
    }
    // A thread starts in its parent's namespace and would keep a test's namespace alive.
    let home = Namespace::open("/proc/self/ns/net")?;
    let spawner = SPAWNER.get_or_init(|| {
        let (requests, queue) = mpsc::channel::<Start>();
        thread::spawn(move || {
            if let Err(error) = sys::enter(home.as_fd()) {
                tracing::warn!(%error, "the thread that starts programs keeps the namespace of its first user");
            }
            drop(home);
            for Start { mut command, answer } in queue {
                let started = command.spawn();
                // The command holds a namespace open.
                drop(command);
                drop(answer.send(started));
            }
        });
        requests
    });
    Ok(spawner.clone())
}

/// The lines of a program, shared between the thread that reads them and the test.
#[derive(Debug, Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    lines: VecDeque<String>,
    closed: bool,
}

/// A limit, so that a program in an endless loop cannot use all memory.
const MAX_LINES: usize = 10_000;

impl Log {
    fn collect(&self, stderr: impl Read) {
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            tracing::trace!(line = text, "program output");
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.lines.len() == MAX_LINES {
                state.lines.pop_front();
            }
            state.lines.push_back(text);
            self.grown.notify_all();
            line.clear();
        }
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.grown.notify_all();
    }

    fn wait_for(&self, text: &str, limit: Duration) -> Result<String, LineNotFound> {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = state.lines.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let first = state.lines.len().saturating_sub(20);
                let last_lines: Vec<_> = state.lines.range(first..).map(String::as_str).collect();
                let why = if state.closed {
                    "before the program ended".to_owned()
                } else {
                    format!("within {limit:?}")
                };
                return Err(LineNotFound { text: text.to_owned(), why, last_lines: last_lines.join("\n") });
            }
            state = self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// An expected line was not written.
#[derive(thiserror::Error)]
#[error("no line with {text:?} {why}; the last lines were:\n{last_lines}")]
pub struct LineNotFound {
    text: String,
    why: String,
    last_lines: String,
}

/// Formats like the message, because tests see it through `unwrap`.
impl std::fmt::Debug for LineNotFound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}
