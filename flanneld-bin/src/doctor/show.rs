//! The output of `flanneld doctor`: text or JSON.

use std::fmt::Write as _;

use flannel_node::doctor::{Finding, Severity};
use serde::Serialize;

use crate::format::{Paint, plain};

/// Formats findings as text.
pub(super) fn text(findings: &[Finding], paint: Paint) -> String {
    if findings.is_empty() {
        return "no findings\n".to_owned();
    }
    let mut text = String::new();
    for finding in findings {
        let Finding { id, severity, what, why, cure } = finding;
        let word = format!("{:<7}", severity.word());
        let word = match severity {
            Severity::Warning => paint.warning(&word),
            Severity::Error => paint.bad(&word),
        };
        let _ = writeln!(text, "{word} {id}: {}", plain(what));
        line(&mut text, "why", why);
        cure.commands.iter().for_each(|command| line(&mut text, "cure", command));
        if !cure.flags.is_empty() {
            line(&mut text, "cure", &format!("start flanneld with {}", cure.flags.join(" ")));
        }
        cure.lasting.iter().for_each(|command| line(&mut text, "persist", command));
        text.push('\n');
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let _ = writeln!(text, "{errors} error{}, {warnings} warning{}", plural(errors), plural(warnings));
    text
}

/// Writes a labelled text, which may have several lines.
fn line(text: &mut String, label: &str, content: &str) {
    let lines: Vec<String> = content.split('\n').map(plain).collect();
    let _ = writeln!(text, "  {label:<9} {}", lines.join("\n"));
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Formats findings as JSON. Its members are stable; later versions may add more.
pub(super) fn json(findings: &[Finding]) -> String {
    #[derive(Serialize)]
    struct Report<'a> {
        /// The version of this format.
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
