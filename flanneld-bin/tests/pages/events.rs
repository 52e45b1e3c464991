//! The page of events beside the events.

use crate::read;

/// The variants of `NetworkEvent` as they are declared: name, and what they hold.
fn declared() -> Vec<String> {
    let source = read("flannel-core/src/event.rs");
    let (_, body) = source.split_once("pub enum NetworkEvent {\n").expect("the events");
    let (body, _) = body.split_once("\n}\n").expect("their end");
    let lines = body.lines().filter(|line| !line.trim_start().starts_with("///"));
    let mut variants: Vec<String> = Vec::new();
    for line in lines {
        match (line.strip_prefix("        "), line.strip_prefix("    ")) {
            (Some(field), _) => {
                let name = field.split(':').next().expect("a field").trim();
                let variant = variants.last_mut().expect("a field belongs to a variant");
                let comma = if variant.ends_with('{') { "" } else { "," };
                variant.push_str(&format!("{comma} {name}"));
            }
            (None, Some("},")) => variants.last_mut().expect("a variant").push_str(" }"),
            (None, Some(variant)) => variants.push(variant.trim_end_matches(',').to_owned()),
            (None, None) => {}
        }
    }
    variants
}

/// The rows of the page: the event as it is declared, when it comes, and what the daemon logs.
fn documented() -> Vec<[String; 3]> {
    let page = read("docs/events.md");
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<String> =
                line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
            cells.try_into().unwrap_or_else(|_| panic!("not three cells: {line}"))
        })
        .collect()
}

#[test]
fn the_page_of_events_has_every_event_in_their_order_with_what_it_holds() {
    let declared = declared();
    assert!(
        declared.len() > 20 && declared.contains(&"PeersHeld { peers, at_most }".to_owned()),
        "{declared:?}"
    );
    let documented: Vec<String> = documented().iter().map(|[event, ..]| event.replace('`', "")).collect();
    assert_eq!(documented, declared);
}

#[test]
fn what_the_page_says_of_the_log_is_what_the_daemon_logs() {
    let story = read("flanneld-bin/src/event_log.rs");
    // A text may go over lines of source.
    let story: String = story.split_whitespace().collect::<Vec<_>>().join(" ");
    for [event, _, log] in documented() {
        let quoted: Vec<&str> = log.split('`').skip(1).step_by(2).collect();
        assert!(!log.is_empty(), "{event}: what does the daemon log?");
        for part in
            quoted.iter().flat_map(|text| text.split("...")).map(str::trim).filter(|part| !part.is_empty())
        {
            assert!(story.contains(part), "{event}: {part:?} is logged by nothing");
        }
    }
}
