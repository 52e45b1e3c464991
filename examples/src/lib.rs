//! Helpers for the examples: progress lines and tables, and waiting for a network.
#![allow(clippy::print_stdout, reason = "an example prints its results")]

pub mod agent;

use std::error::Error;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_core::{Network, NetworkTask, Running};
use flannel_testing::{Host, PingOptions, Pod, eventually, ping};

/// A progress line: the step, and then its result.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Prints the name of the step and leaves the line open.
    #[must_use]
    pub fn begin(what: &str) -> Self {
        print!("  {what:<10} ");
        flush();
        Self { started: Instant::now() }
    }

    /// Prints the result and the elapsed time.
    pub fn done(self, result: &str) {
        println!("{result}  ({} ms)", self.started.elapsed().as_millis());
    }
}

fn flush() {
    // A closed standard output is not an error.
    let _ = std::io::stdout().flush();
}

/// A table whose columns are as wide as their widest cell.
#[derive(Debug)]
pub struct TextTable {
    rows: Vec<Vec<String>>,
    right: bool,
}

impl TextTable {
    /// Creates a table with a heading; cells are left-aligned.
    pub fn new<S: Into<String>>(heading: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![heading.into_iter().map(Into::into).collect()], right: false }
    }

    /// Right-aligns all columns except the first.
    #[must_use]
    pub fn right_aligned(self) -> Self {
        Self { right: true, ..self }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, words: impl IntoIterator<Item = S>) {
        self.rows.push(words.into_iter().map(Into::into).collect());
    }

    /// Prints the table.
    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width_of = |column| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|word: &String| word.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width_of(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let words = row.iter().zip(&widths).enumerate().map(|(column, (word, &width))| {
                if self.right && column > 0 { format!("{word:>width$}") } else { format!("{word:<width$}") }
            });
            let line = words.collect::<Vec<_>>().join("  ");
            println!("  {}", line.trim_end());
        }
        println!();
    }
}

/// Timeout for steps that usually take milliseconds, generous for machines under load.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
///
/// # Errors
///
/// Returns the name of the condition after half a minute.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Box<dyn Error>> {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.map_err(|_| format!("timed out waiting for: {what}").into())
}

/// Runs a network in the background.
pub fn run(task: NetworkTask) {
    tokio::spawn(async {
        if let Err(error) = task.run().await {
            println!("a network stopped: {}", flannel_core::chain(&error));
        }
    });
}

/// Waits until a network has programmed this many peers.
///
/// # Errors
///
/// Fails if the network stops, or after half a minute.
pub async fn ready(network: &Network, peers: usize) -> Result<Running, Box<dyn Error>> {
    let running = network.ready().await?;
    until(&format!("{peers} peers"), || network.summary().peers.programmed == peers).await?;
    Ok(running)
}

/// Adds a pod to a host, with an address from its lease.
///
/// # Errors
///
/// Returns the errors of the lab.
pub fn pod(host: &Host, running: &Running) -> Result<Pod, Box<dyn Error>> {
    Ok(host.add_pod(&running.lease.subnet.nets().collect::<Vec<_>>(), running.mtu)?)
}

/// Pings one pod from another until a reply arrives, and prints the result. Runs on a thread, so that the networks can
/// make progress.
///
/// # Errors
///
/// Returns the last ping error after half a minute.
pub async fn show_ping(from: &Pod, to: &Pod) -> Result<(), Box<dyn Error>> {
    let (namespace, address) = (from.namespace.clone(), first_address(to)?);
    let reach = move || eventually(PATIENCE, || ping(&namespace, address, &PingOptions::default()));
    tokio::task::spawn_blocking(reach).await??;
    println!("{} reaches {} at {address}", from.name, to.name);
    Ok(())
}

/// Returns the first address of a pod.
///
/// # Errors
///
/// Fails if the pod has none.
pub fn first_address(pod: &Pod) -> Result<IpAddr, Box<dyn Error>> {
    Ok(*pod.addresses.first().ok_or("the pod has no address")?)
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
