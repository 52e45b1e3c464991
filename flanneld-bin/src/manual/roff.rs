//! The manual as a man page, in the macros of man(7).

use std::fmt::Write as _;

use super::Part;
use crate::flags::Described;

pub(super) fn page(parts: &[Part]) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".\\\" Made by: flanneld man\n.TH FLANNELD 8 \"\" \"flannel-rs {version}\" \"System Administration\"\n\
         .SH NAME\nflanneld \\- run a flannel network on one host\n\
         .SH SYNOPSIS\n.B flanneld\n[OPTION]...\n.br\n.B flanneld\nCOMMAND [OPTION]...\n.SH DESCRIPTION\n"
    );
    for part in parts {
        match part {
            // Writing to a string cannot fail.
            Part::Section(title) => drop(writeln!(page, ".SH {}", title.to_uppercase())),
            Part::Subsection(title) => drop(writeln!(page, ".SS {}", escaped(title))),
            Part::Text(text) => drop(writeln!(page, ".PP\n{}", formatted(text))),
            Part::Flags(flags) => flags.iter().for_each(|flag| page.push_str(&described(flag))),
            Part::Terms(terms) => {
                for (term, meaning) in *terms {
                    let _ = writeln!(page, ".TP\n.B {}\n{}", escaped(term), escaped(meaning));
                }
            }
            Part::Exits(exits) => {
                page.push_str(".PP\nExit status:\n");
                for (status, meaning) in *exits {
                    let _ = writeln!(page, ".TP\n.B {status}\n{}", escaped(meaning));
                }
            }
        }
    }
    page.push_str(".SH SEE ALSO\n.BR etcd (1),\n.BR ip (8),\n.BR systemd.exec (5)\n");
    page
}

fn described(flag: &Described) -> String {
    let Described { name, word, default, description, variable } = flag;
    let head = format!("\\fB\\-{}\\fR", escaped(name));
    let word = if word.is_empty() { String::new() } else { format!(" \\fI{word}\\fR") };
    let default = default.as_ref().map_or_else(String::new, |value| format!(" Default: {value}."));
    let variable = variable.as_ref().map_or_else(String::new, |name| format!(" [{name}]"));
    format!(".TP\n{head}{word}\n{}\n", escaped(&format!("{description}.{default}{variable}")))
}

/// Makes what stands between backticks bold.
fn formatted(text: &str) -> String {
    let pieces = text.split('`').enumerate().map(|(number, piece)| {
        if number % 2 == 1 { format!("\\fB{}\\fR", escaped(piece)) } else { escaped(piece) }
    });
    pieces.collect()
}

/// Writes text such that it is no macro and its hyphens can be copied.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
