//! The pages of the repository: links resolve, the book is complete and builds without warnings, and excerpts of sources are
//! verbatim.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use page::Page;

mod book;
mod lists;
mod page;

/// The directory of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is inside the repository")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every page, sorted by path.
fn pages() -> Vec<Page> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
            let is_ours = name != "target" && !name.as_encoded_bytes().starts_with(b".");
            if path.is_dir() && is_ours {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(root(), &mut found);
    found.sort();
    let pages: Vec<Page> =
        found.iter().map(|path| Page::read(path.strip_prefix(root()).unwrap().to_owned())).collect();
    assert!(pages.iter().any(|page| page.path == Path::new("README.md")), "{found:?}");
    pages
}

/// The target of a link: a path in the repository, and the anchor.
fn target(page: &Page, link: &str) -> (PathBuf, Option<String>) {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let mut target = page.path.clone();
    if !path.is_empty() {
        target.pop();
        for part in path.trim_end_matches('/').split('/') {
            match part {
                ".." => assert!(target.pop(), "{}: {link} leaves the repository", page.path.display()),
                "." => {}
                name => target.push(name),
            }
        }
    }
    (target, anchor.map(str::to_owned))
}

#[test]
fn every_link_resolves() {
    let pages = pages();
    let mut dead = Vec::new();
    let mut seen = 0;
    for page in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            seen += 1;
            let (path, anchor) = target(page, link);
            let exists = match anchor {
                None => root().join(&path).exists(),
                Some(anchor) => pages.iter().any(|page| page.path == path && page.anchors.contains(&anchor)),
            };
            if !exists {
                dead.push(format!("{}: {link}", page.path.display()));
            }
        }
    }
    assert!(seen > 100, "only {seen} links were found");
    assert!(dead.is_empty(), "broken links:\n{}", dead.join("\n"));
}

/// The site shows no directories, and converts pages to HTML.
#[test]
fn links_out_of_the_book_point_to_source_files() {
    for page in pages().iter().filter(|page| page.path.starts_with("docs")) {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let (path, _) = target(page, link);
            if path.starts_with("docs") {
                continue;
            }
            let is_page = path.extension().is_some_and(|extension| extension == "md");
            assert!(
                root().join(&path).is_file() && !is_page,
                "{}: {link} is not a source file; the book cannot show it",
                page.path.display()
            );
        }
    }
}

#[test]
fn the_summary_lists_every_page_once() {
    let contents = Page::read("docs/SUMMARY.md".into());
    let named: Vec<PathBuf> = contents.links.iter().map(|link| target(&contents, link).0).collect();
    let is_of_the_book = |page: &Page| page.path.starts_with("docs") && page.path != contents.path;
    let there: BTreeSet<PathBuf> = pages().into_iter().filter(is_of_the_book).map(|page| page.path).collect();
    assert_eq!(named.iter().cloned().collect::<BTreeSet<_>>(), there, "docs/SUMMARY.md and docs/");
    assert_eq!(named.len(), there.len(), "docs/SUMMARY.md lists a page twice");
}

/// Rust code on a page is an excerpt of a compiled file: the last one linked above.
#[test]
fn rust_code_in_the_book_is_an_excerpt_of_the_file_linked_above() {
    let mut seen = 0;
    for page in pages().iter().filter(|page| page.path.starts_with("docs")) {
        for block in page.blocks.iter().filter(|block| block.language == "rust") {
            seen += 1;
            let link = block.link_above.as_ref().unwrap_or_else(|| panic!("{:?}: no link above", page.path));
            let source = read(target(page, link).0);
            // An excerpt may omit parts, and has its own indentation.
            for part in block.text.split("// ...\n") {
                let (part, lines): (Vec<_>, Vec<_>) = (trimmed(part), trimmed(&source));
                let is_found = lines.windows(part.len()).any(|window| window == part);
                assert!(is_found, "{}: not in {link}:\n{}", page.path.display(), part.join("\n"));
            }
        }
    }
    assert!(seen >= 6, "{seen}");
}

fn trimmed(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}
