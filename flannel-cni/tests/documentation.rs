//! `docs/cni.md` lists what the plugin reads and returns.

use std::collections::BTreeSet;

use flannel_cni::{ERROR_CODES, MEMBERS};

const PAGE: &str = include_str!("../../docs/cni.md");

/// The first cells of the table below a heading, split at commas, without backticks.
fn first_cells(heading: &str) -> BTreeSet<String> {
    let (_, section) = PAGE.split_once(&format!("\n## {heading}\n")).expect("the page has this heading");
    let rows = section.split("\n## ").next().unwrap_or_default().lines();
    let rows = rows.skip_while(|line| !line.starts_with("|---"));
    let cells = rows.filter_map(|row| row.strip_prefix("| ")?.split(" |").next());
    cells.flat_map(|cell| cell.split(", ").map(|word| word.trim_matches('`').to_owned())).collect()
}

#[test]
fn the_page_lists_every_member_of_the_configuration() {
    assert_eq!(first_cells("Configuration"), MEMBERS.map(str::to_owned).into());
}

#[test]
fn the_page_lists_every_error_code() {
    let mut listed = first_cells("Errors");
    assert!(listed.remove("others"), "the delegate's codes");
    assert_eq!(listed, ERROR_CODES.map(|code| code.to_string()).into());
}
