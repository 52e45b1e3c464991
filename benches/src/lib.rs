//! Benches of flannel, each a ratio against a baseline measured in the same run.
//!
//! Shared code: statistics, and facts about a process and the machine.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed bench")]

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod figures;

/// The median of some numbers, with the smallest and the largest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Spread {
    /// Returns the spread of some numbers, or `None` if there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*numbers.first()?, *numbers.last()?);
        Some(Self { median: numbers[numbers.len() / 2], least, most })
    }
}

impl From<f64> for Spread {
    /// Returns the spread of a single number.
    fn from(number: f64) -> Self {
        Self { median: number, least: number, most: number }
    }
}

impl fmt::Display for Spread {
    /// Writes `median (least – most)`, each with the given digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { median, least, most } = self;
        write!(f, "{median:.digits$} ({least:.digits$} – {most:.digits$})")
    }
}

/// Returns the median of some numbers.
///
/// # Panics
///
/// Panics if there are none.
pub fn median(numbers: impl IntoIterator<Item = f64>) -> f64 {
    Spread::of(numbers).unwrap().median
}

/// The memory of a process, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct ProcessMemory {
    /// The resident memory (`VmRSS`).
    pub resident: f64,
    /// The peak of the resident memory (`VmHWM`).
    pub peak: f64,
}

impl ProcessMemory {
    /// Reads the memory of a process, by its ID or `self` (proc_pid_status(5)).
    ///
    /// # Panics
    ///
    /// Panics if there is no such process.
    #[must_use]
    pub fn of(process: &str) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let field = |name: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
        };
        Self { resident: field("VmRSS"), peak: field("VmHWM") }
    }
}

/// Returns how long this thread has had a processor, in seconds (`/proc/[pid]/schedstat`).
///
/// On a shared machine this says more about the work than the elapsed time.
///
/// # Panics
///
/// Panics if the kernel does not report it.
#[must_use]
pub fn processor_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Describes the machine.
#[must_use]
pub fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!(
        "Linux {}, {} × {}",
        read("/proc/sys/kernel/osrelease").trim(),
        std::thread::available_parallelism().map_or(1, usize::from),
        model.map_or("unknown processor", |(_, model)| model),
    )
}

/// The command line of a bench over sizes: sizes, `--rounds N`, `--quick`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The numbers of peers.
    pub sizes: Vec<u32>,
    /// The number of rounds per size.
    pub rounds: u32,
}

impl Options {
    /// Parses the command line.
    ///
    /// # Panics
    ///
    /// Panics at any other argument.
    #[must_use]
    pub fn read() -> Self {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let is_quick = arguments.iter().any(|argument| argument == "--quick");
        let mut rounds = if is_quick { 3 } else { 5 };
        let mut sizes = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
                // Cargo passes `--bench`; `--quick` is handled above.
                "--bench" | "--quick" => {}
                size => sizes.push(size.parse().unwrap()),
            }
        }
        if sizes.is_empty() {
            sizes = if is_quick { vec![1_000, 5_000] } else { vec![1_000, 5_000, 20_000, 50_000] };
        }
        Self { sizes, rounds }
    }
}
