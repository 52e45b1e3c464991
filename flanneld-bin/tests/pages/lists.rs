//! Lists in pages, compared with the code.

use std::collections::BTreeSet;

use flannel_core::{LeaseAttrs, SubnetKey};
use flannel_node::server::{PRIVATE_PATHS, PUBLIC_PATHS};

use crate::read;

/// The first cells of the table below a heading, split at commas, without backticks.
fn first_cells(page: &str, heading: &str) -> BTreeSet<String> {
    let page = read(page);
    let part = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    let rows = part.split("\n## ").next().unwrap().lines().skip_while(|line| !line.starts_with("|---"));
    let cells = rows.filter_map(|row| row.strip_prefix("| ")?.split(" |").next());
    cells.flat_map(|cell| cell.split(", ").map(|word| word.trim_matches('`').to_owned())).collect()
}

#[test]
fn the_page_lists_the_paths_of_the_health_port_and_the_socket() {
    let listed = first_cells("docs/status.md", "The health port");
    assert_eq!(listed, PUBLIC_PATHS.iter().map(|path| (*path).to_owned()).collect());
    let page = read("docs/status.md");
    assert!(PRIVATE_PATHS.iter().all(|path| page.contains(&format!("`{path}`"))), "{PRIVATE_PATHS:?}");
}

#[test]
fn the_reference_lists_the_keys_and_the_members_of_records() {
    let full = r#"{"PublicIP":"192.168.64.1","PublicIPv6":"fc01::1","BackendType":"vxlan","BackendData":{"VNI":1},
        "BackendV6Data":{"VNI":1},"NodeID":"07070707070707070707070707070707","Other":1}"#;
    let record = LeaseAttrs::from_record(full).unwrap().to_record();
    let written: serde_json::Map<_, _> = serde_json::from_str(&record).unwrap();
    let written: BTreeSet<String> = written.keys().cloned().collect();
    let listed = first_cells("docs/reference.md", "Keys and records");
    let (keys, members): (BTreeSet<_>, BTreeSet<_>) =
        listed.into_iter().partition(|word| word == "config" || word.contains('/'));
    assert_eq!(members.into_iter().filter(|word| word != "member").collect::<BTreeSet<_>>(), written);
    let subnets: Vec<_> = keys.iter().filter_map(|key| key.strip_prefix("subnets/")).collect();
    assert_eq!(subnets.len(), 3, "{keys:?}");
    for key in subnets {
        assert_eq!(key.parse::<SubnetKey>().unwrap().to_string(), key);
    }
}
