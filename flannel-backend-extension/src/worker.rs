//! The thread that runs the commands for peers, so that a slow command doesn't block the network.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flannel_core::SubnetKey;
use tokio::sync::Notify;

use crate::config::ExtensionConfig;
use crate::ledger::{Job, Task, describe};
use crate::shell::{Call, Shell};

/// The command thread. Dropping it kills the running command and joins the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    shell: Arc<Shell>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<WorkQueue>,
    changed: Condvar,
    progress: Notify,
}

/// The queued, running and finished commands.
#[derive(Debug, Default)]
pub(crate) struct WorkQueue {
    /// The next commands; each pass replaces the queue.
    pub(crate) queue: VecDeque<Job>,
    /// The peer whose command is running.
    pub(crate) running: Option<SubnetKey>,
    /// The commands that ended since the last pass.
    pub(crate) ended: Vec<(Job, Result<(), String>)>,
    stop: bool,
}

impl Worker {
    pub(crate) fn start(shell: Arc<Shell>, config: Arc<ExtensionConfig>) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (inside, runs) = (Arc::clone(&shared), Arc::clone(&shell));
        let thread = thread::Builder::new().name("flannel-commands".to_owned());
        let thread = Some(thread.spawn(move || work(&inside, &runs, &config))?);
        Ok(Self { shell, shared, thread })
    }

    /// Accesses the queue while no command can end.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut WorkQueue) -> T) -> T {
        let done = change(&mut self.shared.lock());
        self.shared.changed.notify_all();
        done
    }

    /// Waits until the queue is empty and no command runs, at most for `limit`.
    pub(crate) fn wait_until_idle(&self, limit: Duration) {
        let busy = |work: &mut WorkQueue| !work.queue.is_empty() || work.running.is_some();
        // The caller reads the queue again after a timeout.
        let _ = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, busy);
    }

    /// Waits until a command has ended since the last call.
    pub(crate) async fn progress(&self) {
        self.shared.progress.notified().await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.with(|work| work.stop = true);
        self.shell.stop();
        if let Some(thread) = self.thread.take() {
            // After a panic there is nothing left to do.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, WorkQueue> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next command; returns `None` if the thread must end.
    fn next(&self) -> Option<Job> {
        let idle = |work: &mut WorkQueue| work.queue.is_empty() && !work.stop;
        let waited = self.changed.wait_while(self.lock(), idle);
        let mut work = waited.unwrap_or_else(PoisonError::into_inner);
        let job = work.queue.pop_front().filter(|_| !work.stop)?;
        work.running = Some(job.subnet);
        Some(job)
    }
}

fn work(shared: &Shared, shell: &Shell, config: &ExtensionConfig) {
    while let Some(job) = shared.next() {
        let result = run(shell, config, &job);
        let mut work = shared.lock();
        work.running = None;
        work.ended.push((job, result));
        drop(work);
        shared.changed.notify_all();
        shared.progress.notify_one();
    }
}

/// Runs a command for a peer; succeeds if none is configured.
pub(crate) fn run(shell: &Shell, config: &ExtensionConfig, job: &Job) -> Result<(), String> {
    let script = match job.task {
        Task::Add => &config.subnet_add,
        Task::Remove => &config.subnet_remove,
    };
    let Some(script) = script else { return Ok(()) };
    let (variables, input) = (&job.input.variables, job.input.stdin.as_str());
    let name = describe(job.task, &job.subnet);
    shell.run(&Call { name, script, variables, input }).map(drop)
}
