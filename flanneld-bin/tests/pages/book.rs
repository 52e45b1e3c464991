//! The book that `scripts/book` builds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::root;

#[test]
fn the_book_builds_without_warnings_and_its_links_resolve() {
    let site = Path::new(env!("CARGO_TARGET_TMPDIR")).join("book");
    let _ = fs::remove_dir_all(&site);
    let built = Command::new(root().join("scripts/book")).arg(&site).output().unwrap();
    let output = String::from_utf8_lossy(&[built.stdout, built.stderr].concat()).into_owned();
    assert!(built.status.success(), "{output}");
    assert!(!output.contains("WARN") && !output.contains("ERROR"), "{output}");

    let mut pages = BTreeMap::new();
    collect(&fs::canonicalize(site.join("docs")).unwrap(), &mut pages);
    let places: BTreeMap<&Path, BTreeSet<&str>> =
        pages.iter().map(|(path, text)| (path.as_path(), values(text, "id").collect())).collect();
    let (mut dead, mut seen) = (Vec::new(), 0);
    for (page, text) in &pages {
        for link in values(text, "href").chain(values(text, "src")).filter(|link| !link.contains("://")) {
            seen += 1;
            let (path, place) =
                link.split_once('#').map_or((link, None), |(path, place)| (path, Some(place)));
            let path = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let is_there = fs::canonicalize(path).is_ok_and(|path| match place {
                None => path.is_file(),
                Some(place) => places.get(path.as_path()).is_some_and(|places| places.contains(place)),
            });
            if !is_there {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(pages.len() > 20 && seen > 500, "{} pages, {seen} links", pages.len());
    assert!(dead.is_empty(), "broken links in the book:\n{}", dead.join("\n"));
    fs::remove_dir_all(&site).unwrap();
}

/// Reads every page of a site except 404.html, which has absolute links.
fn collect(directory: &Path, pages: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "html") && !path.ends_with("404.html")
        {
            let text = fs::read_to_string(&path).unwrap();
            pages.insert(path, text);
        }
    }
}

/// The values of an attribute in mdbook's HTML.
fn values<'t>(text: &'t str, attribute: &str) -> impl Iterator<Item = &'t str> {
    let begin = format!(" {attribute}=\"");
    text.match_indices(&begin)
        .map(|(at, _)| at + begin.len())
        .collect::<Vec<_>>()
        .into_iter()
        .filter_map(|at| text[at..].split_once('"').map(|(value, _)| value))
}
