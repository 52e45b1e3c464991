//! What doctor found, for people and for programs.

use std::fmt::Write as _;

use flannel_node::doctor::{Finding, Severity};
use serde::Serialize;

use crate::show::format::{Paint, plain};

/// Writes findings for people.
pub(super) fn text(findings: &[Finding], paint: Paint) -> String {
    if findings.is_empty() {
        return "nothing found\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let Finding { id, severity, what, why, cure } = finding;
        let word = format!("{:<7}", severity.word());
        let word = match severity {
            Severity::Warning => paint.doubtful(&word),
            Severity::Error => paint.bad(&word),
        };
        let _ = writeln!(text, "{word} {id}: {}", plain(what));
        line(&mut text, "why", why);
        cure.commands.iter().for_each(|command| line(&mut text, "cure", command));
        if !cure.flags.is_empty() {
            line(&mut text, "cure", &format!("start flanneld with {}", cure.flags.join(" ")));
        }
        cure.lasting.iter().for_each(|command| line(&mut text, "for good", command));
        text.push('\n');
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = writeln!(text, "{errors} error{}, {warnings} warning{}", plural(errors), plural(warnings));
    text
}

/// Writes a labelled text; what a shell reads as one is not broken into lines, and has its own.
fn line(text: &mut String, label: &str, content: &str) {
    let lines: Vec<String> = content.split('\n').map(plain).collect();
    let _ = writeln!(text, "  {label:<9} {}", lines.join("\n"));
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Writes findings for programs: members keep their names and meaning, and new ones may come.
pub(super) fn json(findings: &[Finding]) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        /// Of this form.
        version: u32,
        severity: Option<Severity>,
        findings: &'a [Finding],
    }
    let severity = findings.iter().map(|finding| finding.severity).max();
    let report = Report { version: 1, severity, findings };
    crate::show::json(&report, false)
}

#[cfg(test)]
mod tests;
