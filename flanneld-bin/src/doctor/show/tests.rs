use flannel_node::doctor::{Cure, FAULTS, Fault};

use super::*;

const BROKEN: Fault = Fault::error("ip-forward", "no packet is passed on");
const LATE: Fault = Fault::warning("certificate-expires-soon", "it is of no use then");

fn findings() -> Vec<Finding> {
    let flags = Cure::start_with(["-etcd-certfile=FILE", "-etcd-keyfile=FILE"]);
    vec![
        BROKEN.found("net.ipv4.ip_forward is 0", Cure::sysctl("net/ipv4/ip_forward", 1)),
        LATE.found("the certificate CN=a in /a.pem expires on 2030-01-01T00:00:00Z", flags),
    ]
}

/// The block of a page after this fence.
fn block<'p>(page: &'p str, fence: &str) -> &'p str {
    let (_, rest) = page.split_once(fence).expect("the fence");
    rest.split_once("```").expect("its end").0
}

const PAGE: &str = include_str!("../../../../docs/doctor.md");

#[test]
fn the_page_shows_the_text_and_the_json_of_a_host_with_two_faults() {
    assert_eq!(text(&findings(), Paint(false)), block(PAGE, "```text\n"));
    assert_eq!(json(&findings()), block(PAGE, "```json\n"));
}

#[test]
fn the_text_of_a_healthy_host_is_one_line() {
    assert_eq!(text(&[], Paint(true)), "no findings\n");
    assert_eq!(json(&[]), "{\n  \"version\": 1,\n  \"severity\": null,\n  \"findings\": []\n}\n");
}

#[test]
fn colours_are_on_the_severity_only() {
    let (plain, coloured) = (text(&findings(), Paint(false)), text(&findings(), Paint(true)));
    assert!(coloured.starts_with("\u{1b}[1;31merror  \u{1b}[0m ip-forward"), "{coloured}");
    let stripped = ["\u{1b}[1;31m", "\u{1b}[33m", "\u{1b}[0m"]
        .iter()
        .fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let cure = Cure::run(["kill 1\u{1b}[2J", "cat >f <<E\n\u{7}text\nE"]);
    let text = text(&[BROKEN.found("port 8472 is held by \u{1b}]0;x\u{7}", cure)], Paint(false));
    let controls = text.chars().filter(|c| c.is_control() && *c != '\n');
    assert_eq!(controls.count(), 0, "{text:?}");
    assert!(text.contains("\u{fffd}text\nE\n"), "a multi-line command keeps its lines: {text:?}");
}

#[test]
fn the_page_lists_every_fault_with_its_severity() {
    let rows: Vec<(String, String)> = PAGE
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some((cells.next()?.trim_matches('`').to_owned(), cells.next()?.to_owned()))
        })
        .collect();
    let expected: Vec<(String, String)> =
        FAULTS.iter().map(|fault| (fault.id.to_owned(), fault.severity.word().to_owned())).collect();
    assert_eq!(rows, expected);
    let mut ids: Vec<&str> = FAULTS.iter().map(|fault| fault.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), FAULTS.len(), "ids are unique");
}
