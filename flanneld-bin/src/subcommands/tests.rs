use super::*;

/// The exit statuses in the table of a page of `docs/`, for one command or for all of the page.
fn on_page(page: &str, command: &str) -> Option<Vec<u8>> {
    let mut lines = page.lines().skip_while(|line| {
        let is_of_one = line.contains(" of ");
        !line.starts_with("| exit status") || (is_of_one && !line.contains(&format!("`{command}`")))
    });
    lines.next()?;
    let rows = lines.skip(1).map_while(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok());
    Some(rows.collect())
}

#[test]
fn the_page_of_a_command_lists_its_exit_statuses() {
    for (command, page) in [
        ("status", include_str!("../../../docs/status.md")),
        ("peers", include_str!("../../../docs/status.md")),
        ("plan", include_str!("../../../docs/status.md")),
        ("ping", include_str!("../../../docs/ping.md")),
        ("migrate-etcd", include_str!("../../../docs/migrating-etcd.md")),
        ("doctor", include_str!("../../../docs/doctor.md")),
    ] {
        let known = find(OsStr::new(command)).map(|found| found.exit_statuses).unwrap_or_default();
        let known: Vec<u8> = known.iter().map(|(status, _)| *status).collect();
        assert_eq!(on_page(page, command), Some(known), "{command}");
    }
}
