//! What examples share: words and tables on a terminal, and waiting for what a network does.
#![allow(clippy::print_stdout, reason = "an example talks to the person who runs it")]

use std::error::Error;
use std::io::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_core::{Network, NetworkTask, Running};
use flannel_testing::{Host, PingOptions, Pod, eventually, ping};

/// One line of progress: what is being done, and when it is done what came of it.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
}

impl Progress {
    /// Says what begins, and leaves the line open.
    #[must_use]
    pub fn begin(what: &str) -> Self {
        print!("  {what:<10} ");
        flush();
        Self { started: Instant::now() }
    }

    /// Says what came of it, and how long it took.
    pub fn done(self, result: &str) {
        println!("{result}  ({} ms)", self.started.elapsed().as_millis());
    }
}

fn flush() {
    // A closed standard output leaves nobody to show it to.
    let _ = std::io::stdout().flush();
}

/// Rows of words under a heading, each column as wide as its widest word.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: bool,
}

impl Table {
    /// Starts with the heading; words stand at the left of their columns.
    pub fn new<S: Into<String>>(heading: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![heading.into_iter().map(Into::into).collect()], right: false }
    }

    /// Puts the words of all columns but the first at the right, as is usual for numbers.
    #[must_use]
    pub fn of_numbers(self) -> Self {
        Self { right: true, ..self }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, words: impl IntoIterator<Item = S>) {
        self.rows.push(words.into_iter().map(Into::into).collect());
    }

    /// Shows the table.
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

/// How long a network may take for what takes it milliseconds; a machine under load may need more.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so.
///
/// # Errors
///
/// Says what is not so after half a minute.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), Box<dyn Error>> {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.map_err(|_| format!("not in time: {what}").into())
}

/// Runs a network in the background.
pub fn run(task: NetworkTask) {
    tokio::spawn(async {
        if let Err(error) = task.run().await {
            println!("a network ended: {}", flannel_core::chain(&error));
        }
    });
}

/// Waits until a network carries traffic to so many peers.
///
/// # Errors
///
/// Shows the state that it has after half a minute.
pub async fn ready(network: &Network, peers: usize) -> Result<Running, Box<dyn Error>> {
    let running = network.ready().await.ok_or("the network did not start")?;
    until(&format!("{peers} peers"), || network.summary().peers.programmed == peers).await?;
    Ok(running)
}

/// Puts a pod on a host, with an address of its lease.
///
/// # Errors
///
/// Those of the lab.
pub fn pod(host: &Host, running: &Running) -> Result<Pod, Box<dyn Error>> {
    Ok(host.add_pod(&running.lease.subnet.nets().collect::<Vec<_>>(), running.mtu)?)
}

/// Sends pings from pod to pod until one is answered, and tells of it. On a thread, so that the networks go on meanwhile.
///
/// # Errors
///
/// Says who did not answer whom.
pub async fn show_ping(from: &Pod, to: &Pod) -> Result<(), Box<dyn Error>> {
    let (namespace, address) = (from.namespace.clone(), first_address(to)?);
    let reach = move || eventually(PATIENCE, || ping(&namespace, address, &PingOptions::default()));
    tokio::task::spawn_blocking(reach).await??;
    println!("{} reaches {} at {address}", from.name, to.name);
    Ok(())
}

/// The first address of a pod.
///
/// # Errors
///
/// Says that it has none.
pub fn first_address(pod: &Pod) -> Result<IpAddr, Box<dyn Error>> {
    Ok(*pod.addresses.first().ok_or("the pod has no address")?)
}

/// The README's example, so that it compiles as long as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
