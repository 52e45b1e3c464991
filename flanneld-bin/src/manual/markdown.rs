//! The manual as a page of `docs/`.

use std::fmt::Write as _;

use super::Part;
use crate::flags::Described;

pub(super) fn page(parts: &[Part]) -> String {
    let mut page = "<!-- Made by: flanneld man -format=markdown -->\n# The flags of flanneld\n".to_owned();
    for part in parts {
        page.push('\n');
        match part {
            // Writing to a string cannot fail.
            Part::Section(title) => drop(writeln!(page, "## {title}")),
            Part::Subsection(title) => drop(writeln!(page, "### {title}")),
            Part::Text(text) => drop(writeln!(page, "{text}")),
            Part::Flags(flags) => {
                page.push_str("| flag | default | what it is for |\n|---|---|---|\n");
                flags.iter().for_each(|flag| page.push_str(&row(flag)));
            }
            Part::Terms(terms) => {
                page.push_str("| | |\n|---|---|\n");
                for (term, meaning) in *terms {
                    let _ = writeln!(page, "| `{term}` | {} |", cell(meaning));
                }
            }
            Part::Exits(exits) => {
                page.push_str("| exit status | |\n|---|---|\n");
                for (status, meaning) in *exits {
                    let _ = writeln!(page, "| `{status}` | {} |", cell(meaning));
                }
            }
        }
    }
    page
}

fn row(flag: &Described) -> String {
    let Described { name, word, default, description, variable } = flag;
    let blank = if word.is_empty() { "" } else { " " };
    let default = default.as_ref().map_or_else(String::new, |value| format!("`{value}`"));
    let variable = variable.as_ref().map_or_else(String::new, |name| format!("<br>`{name}`"));
    format!("| `-{name}{blank}{word}`{variable} | {default} | {} |\n", cell(description))
}

/// Writes text such that it stays in its cell and its signs are no markup.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}
