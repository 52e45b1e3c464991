//! Verbosity: `-v` and `-vmodule` as in glog (<https://pkg.go.dev/k8s.io/klog/v2>), with Rust files instead of Go files.

use std::fmt;
use std::path::Path;

use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};

use crate::go_syntax::parse_int;

/// The verbosity of the source files whose name matches a pattern.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ModuleLevel {
    /// A file name without `.rs`; `*` matches any text and `?` one character.
    pattern: String,
    verbosity: i64,
}

impl ModuleLevel {
    /// Parses `pattern=N,pattern=N`. The error has glog's wording.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let elements = text.split(',').filter(|element| !element.is_empty());
        elements.map(|element| Self::parse(element).ok_or_else(|| bad_list(element))).collect()
    }

    fn parse(element: &str) -> Option<Self> {
        let (pattern, number) = element.split_once('=')?;
        let verbosity = parse_int(number).ok().filter(|verbosity| *verbosity >= 0)?;
        (!pattern.is_empty()).then(|| Self { pattern: pattern.to_owned(), verbosity })
    }
}

fn bad_list(element: &str) -> String {
    format!("syntax error: expect comma-separated list of filename=N: {element:?}")
}

/// The file and line that logged an event.
pub(super) struct SourceLine {
    pub(super) file: String,
    pub(super) line: u32,
}

impl SourceLine {
    pub(super) fn of(metadata: &Metadata<'_>) -> Self {
        let file = metadata.file().and_then(|path| Path::new(path).file_name());
        let file = file.map_or_else(|| "???".to_owned(), |name| name.display().to_string());
        Self { file, line: metadata.line().unwrap_or(1) }
    }
}

impl fmt::Display for SourceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The verbosity of each part of the program.
pub(super) struct Levels {
    /// The verbosity of flannel's own crates.
    own: LevelFilter,
    modules: Vec<ModuleLevel>,
}

impl Levels {
    pub(super) fn new(verbosity: i64, modules: Vec<ModuleLevel>) -> Self {
        Self { own: level(verbosity), modules }
    }

    /// Returns the filter. `tracing` evaluates it once per call site.
    pub(super) fn filter<S: Subscriber>(self) -> impl Layer<S> {
        let most = self.modules.iter().map(|module| level(module.verbosity)).max();
        let most = most.map_or(self.own, |module| module.max(self.own));
        filter_fn(move |metadata| self.allows(metadata)).with_max_level_hint(most)
    }

    fn allows(&self, metadata: &Metadata<'_>) -> bool {
        // A target is a module path; those of flannel's crates start with "flannel".
        let base = if metadata.target().starts_with("flannel") { self.own } else { LevelFilter::INFO };
        let stem =
            metadata.file().and_then(|path| Path::new(path).file_stem()).and_then(|stem| stem.to_str());
        let is_match = |module: &&ModuleLevel| stem.is_some_and(|stem| matches(&module.pattern, stem));
        // The first match counts, and only adds verbosity.
        let module = self.modules.iter().find(is_match).map_or(base, |module| level(module.verbosity));
        *metadata.level() <= base.max(module)
    }
}

fn level(verbosity: i64) -> LevelFilter {
    match verbosity {
        ..=0 => LevelFilter::INFO,
        1..=3 => LevelFilter::DEBUG,
        4.. => LevelFilter::TRACE,
    }
}

/// Whether a name matches a pattern. Takes at most as many steps as the product of their lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // After the last star: the position in the pattern, and the position in the name of the last attempt.
    let mut after_star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            after_star = Some((p + 1, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((pattern_at, name_at)) = after_star {
            after_star = Some((pattern_at, name_at + 1));
            (p, n) = (pattern_at, name_at + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests;
