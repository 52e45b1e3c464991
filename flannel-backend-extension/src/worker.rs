//! The thread that runs the commands for peers, so that none of them holds up the network.

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

/// The thread. Dropping it kills the command that runs and waits for the thread to end.
#[derive(Debug)]
pub(crate) struct Worker {
    shell: Arc<Shell>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    progress: Notify,
}

/// What there is to do, and what was done.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// What is to be run next. Whoever knows better replaces it.
    pub(crate) queue: VecDeque<Job>,
    /// Whose command runs now.
    pub(crate) running: Option<SubnetKey>,
    /// What ended since somebody looked.
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

    /// Looks at the work and changes it; no command ends meanwhile.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Work) -> T) -> T {
        let done = change(&mut self.shared.lock());
        self.shared.changed.notify_all();
        done
    }

    /// Waits until everything was run, but no longer than this.
    pub(crate) fn wait_until_idle(&self, limit: Duration) {
        let busy = |work: &mut Work| !work.queue.is_empty() || work.running.is_some();
        // Whether it is idle now shows at the next look.
        let _ = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, busy);
    }

    /// Waits until a command ended that nobody has seen yet.
    pub(crate) async fn progress(&self) {
        self.shared.progress.notified().await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.with(|work| work.stop = true);
        self.shell.stop();
        if let Some(thread) = self.thread.take() {
            // If it panicked there is nothing to wait for.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next command; none if the thread is to end.
    fn next(&self) -> Option<Job> {
        let idle = |work: &mut Work| work.queue.is_empty() && !work.stop;
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

/// Runs the command for a peer; where there is none, that is well, too.
pub(crate) fn run(shell: &Shell, config: &ExtensionConfig, job: &Job) -> Result<(), String> {
    let script = match job.task {
        Task::Add => &config.subnet_add,
        Task::Remove => &config.subnet_remove,
    };
    let Some(script) = script else { return Ok(()) };
    let (variables, input) = (&job.told.variables, job.told.input.as_str());
    let name = describe(job.task, &job.subnet);
    shell.run(&Call { name, script, variables, input }).map(drop)
}
