//! The pages of the repository: every link leads somewhere, the book is whole and builds without a warning, and what a
//! page shows of the sources is what stands there.

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
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every page, in the order of their paths.
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

/// The page that a link leads to, as a path in the repository, and the place on it.
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
fn every_link_of_every_page_leads_somewhere() {
    let pages = pages();
    let mut dead = Vec::new();
    let mut seen = 0;
    for page in &pages {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            seen += 1;
            let (path, anchor) = target(page, link);
            let is_there = match anchor {
                None => root().join(&path).exists(),
                Some(anchor) => pages.iter().any(|page| page.path == path && page.anchors.contains(&anchor)),
            };
            if !is_there {
                dead.push(format!("{}: {link}", page.path.display()));
            }
        }
    }
    assert!(seen > 100, "only {seen} links were found");
    assert!(dead.is_empty(), "these links lead nowhere:\n{}", dead.join("\n"));
}

/// A site has no directories to show, and turns every page into HTML.
#[test]
fn links_that_leave_the_book_lead_to_files_of_source() {
    for page in pages().iter().filter(|page| page.path.starts_with("docs")) {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let (path, _) = target(page, link);
            if path.starts_with("docs") {
                continue;
            }
            let is_page = path.extension().is_some_and(|extension| extension == "md");
            assert!(
                root().join(&path).is_file() && !is_page,
                "{}: {link} is no file of source, and the book cannot show it",
                page.path.display()
            );
        }
    }
}

#[test]
fn the_contents_name_every_page_of_the_book_once() {
    let contents = Page::read("docs/SUMMARY.md".into());
    let named: Vec<PathBuf> = contents.links.iter().map(|link| target(&contents, link).0).collect();
    let is_of_the_book = |page: &Page| page.path.starts_with("docs") && page.path != contents.path;
    let there: BTreeSet<PathBuf> = pages().into_iter().filter(is_of_the_book).map(|page| page.path).collect();
    assert_eq!(named.iter().cloned().collect::<BTreeSet<_>>(), there, "docs/SUMMARY.md and docs/");
    assert_eq!(named.len(), there.len(), "docs/SUMMARY.md names a page twice");
}

/// Code of a page that no compiler sees stands in a file that one sees, which is the last that was linked above it.
#[test]
fn rust_on_a_page_of_the_book_is_an_excerpt_of_the_file_that_is_linked_above_it() {
    let mut seen = 0;
    for page in pages().iter().filter(|page| page.path.starts_with("docs")) {
        for block in page.blocks.iter().filter(|block| block.language == "rust") {
            seen += 1;
            let link = block.link_above.as_ref().unwrap_or_else(|| panic!("{:?}: no link above", page.path));
            let source = read(target(page, link).0);
            // An excerpt may leave parts out, and is not indented as its source is.
            for part in block.text.split("// ...\n") {
                let (part, lines): (Vec<_>, Vec<_>) = (trimmed(part), trimmed(&source));
                let stands_there = lines.windows(part.len()).any(|window| window == part);
                assert!(stands_there, "{}: not in {link}:\n{}", page.path.display(), part.join("\n"));
            }
        }
    }
    assert!(seen >= 6, "{seen}");
}

fn trimmed(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect()
}
