//! What is logged of all that could be: `-v`, `-vmodule` and `-log_backtrace_at` as in glog, whose files are named without
//! `.go` there and without `.rs` here (<https://pkg.go.dev/k8s.io/klog/v2>).

use std::fmt;
use std::path::Path;

use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};

use crate::go_syntax::parse_int;

/// How much the files whose name fits say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ModuleLevel {
    /// The name of a file without `.rs`, in which `*` is any text and `?` any letter.
    pattern: String,
    verbosity: i64,
}

impl ModuleLevel {
    /// Reads `pattern=N,pattern=N`. The error is in glog's words.
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

/// A line of the source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    file: String,
    line: u32,
}

impl Place {
    /// Reads `file.rs:N`; nothing is no place. The error is in glog's words.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = text.split_once(':').and_then(|(file, line)| {
            let line = line.parse().ok().filter(|line| *line > 0)?;
            file.contains('.').then(|| Self { file: file.to_owned(), line })
        });
        parsed.map(Some).ok_or_else(|| format!("syntax error: expect file.rs:234: {text:?}"))
    }

    pub(super) fn of(metadata: &Metadata<'_>) -> Self {
        let file = metadata.file().and_then(|path| Path::new(path).file_name());
        let file = file.map_or_else(|| "???".to_owned(), |name| name.display().to_string());
        Self { file, line: metadata.line().unwrap_or(1) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// How much each part of the program says.
pub(super) struct Levels {
    /// Our own crates.
    own: LevelFilter,
    modules: Vec<ModuleLevel>,
}

impl Levels {
    pub(super) fn new(verbosity: i64, modules: Vec<ModuleLevel>) -> Self {
        Self { own: level(verbosity), modules }
    }

    /// The filter, which is asked once for each place in the program.
    pub(super) fn filter<S: Subscriber>(self) -> impl Layer<S> {
        let most = self.modules.iter().map(|module| level(module.verbosity)).max();
        let most = most.map_or(self.own, |module| module.max(self.own));
        filter_fn(move |metadata| self.allows(metadata)).with_max_level_hint(most)
    }

    fn allows(&self, metadata: &Metadata<'_>) -> bool {
        // Targets are module paths, and those of our crates begin with this.
        let base = if metadata.target().starts_with("flannel") { self.own } else { LevelFilter::INFO };
        let stem =
            metadata.file().and_then(|path| Path::new(path).file_stem()).and_then(|stem| stem.to_str());
        let fits = |module: &&ModuleLevel| stem.is_some_and(|stem| matches(&module.pattern, stem));
        // Of the patterns that fit the first counts, and it takes nothing away.
        let module = self.modules.iter().find(fits).map_or(base, |module| level(module.verbosity));
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

/// Tells whether a name fits a pattern, in steps that are no more than the product of their lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Behind the last star: where the pattern goes on, and where the name did when it was tried last.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p + 1, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| *c == '?' || *c == name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((behind, tried)) = star {
            star = Some((behind, tried + 1));
            (p, n) = (behind, tried + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_has_stars_and_question_marks_in_it() {
        for (pattern, name) in [
            ("iface", "iface"),
            ("i*", "iface"),
            ("*", ""),
            ("*face", "iface"),
            ("i?ace", "iface"),
            ("*a*a*", "banana"),
            ("b*na", "banana"),
            ("**", "x"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("iface", "ifaces"), ("if?", "iface"), ("", "x"), ("*x", "banana"), ("b*b", "banana"), ("?", "")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(50), &"a".repeat(49)));
    }

    #[test]
    fn lists_and_places_are_read_as_glog_reads_them() {
        let module = |pattern: &str, verbosity| ModuleLevel { pattern: pattern.to_owned(), verbosity };
        let list = ModuleLevel::parse_list("iface=4,,n*=0x1,");
        assert_eq!(list, Ok(vec![module("iface", 4), module("n*", 1)]));
        assert_eq!(ModuleLevel::parse_list(""), Ok(vec![]));
        for bad in ["iface", "iface=", "=1", "iface=x", "a=1,iface=-1"] {
            assert!(ModuleLevel::parse_list(bad).is_err_and(|why| why.contains("filename=N")), "{bad}");
        }
        let place = Place::parse("main.rs:12").expect("a place").expect("one");
        assert_eq!(place.to_string(), "main.rs:12");
        assert_eq!(Place::parse(""), Ok(None));
        for bad in ["main.rs", ":12", "main:12", "main.rs:0", "main.rs:-1", "main.rs:x"] {
            assert!(Place::parse(bad).is_err_and(|why| why.contains("file.rs:234")), "{bad}");
        }
    }
}
