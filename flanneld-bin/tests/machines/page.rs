//! Runs the commands of a page: each on the machine of its prompt, with the output below it.
//!
//! ```console
//! host-1# etcdctl get key
//! a value ... cut short
//! all# systemctl start flanneld
//! ```
//!
//! `...` stands for any text, also for lines. A command with output is repeated until the output matches; any other command
//! must succeed at once.

use flannel_testing::eventually;

use crate::machine::{Machine, PATIENCE, text};
use crate::wildcard;

/// One command of a page.
#[derive(Debug)]
struct Step {
    who: String,
    command: String,
    output: Vec<String>,
}

/// Runs the commands of the section with this heading.
pub(crate) fn run(page: &str, heading: &str, machines: &[Machine]) {
    let part = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let steps = steps(part.split("\n## ").next().unwrap());
    assert!(!steps.is_empty(), "{heading:?} has no commands");
    for step in steps {
        let named = |machine: &&Machine| step.who == "all" || step.who == machine.name;
        assert!(machines.iter().any(|machine| named(&machine)), "who is {}?", step.who);
        machines.iter().filter(named).for_each(|machine| run_step(machine, &step, machines));
    }
}

fn steps(part: &str) -> Vec<Step> {
    let blocks = part.split("```console\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks.flat_map(steps_of_block).collect()
}

fn steps_of_block(block: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_open = false;
    for line in block.lines() {
        let prompt = line.split_once("# ").filter(|(who, _)| *who == "all" || who.starts_with("host-"));
        match (prompt, steps.last_mut()) {
            (_, Some(step)) if is_open => {
                step.command += &format!("\n{line}");
                is_open = line != "END" && (line.ends_with('\\') || step.command.contains("<<'END'"));
            }
            (Some((who, command)), _) => {
                is_open = command.contains("<<'END'") || command.ends_with('\\');
                let (who, command) = (who.to_owned(), command.to_owned());
                steps.push(Step { who, command, output: Vec::new() });
            }
            (None, Some(step)) => step.output.push(line.to_owned()),
            (None, None) => {}
        }
    }
    steps
}

fn run_step(machine: &Machine, step: &Step, machines: &[Machine]) {
    if let Some(arguments) = step.command.strip_prefix("scp ") {
        return copy(machine, arguments, machines);
    }
    let once = || {
        let output = machine.run(&step.command);
        let printed = text(&output);
        if !output.status.success() {
            return Err(format!("{}: {}\n{}: {printed}", machine.name, step.command, output.status));
        }
        if matches(&step.output, &printed) {
            Ok(())
        } else {
            let expected = step.output.join("\n");
            Err(format!(
                "{}: {}\nprints\n{printed}\nbut the page has\n{expected}",
                machine.name, step.command
            ))
        }
    };
    let done = if step.output.is_empty() {
        once()
    } else {
        eventually(PATIENCE, once).map_err(|error| error.to_string())
    };
    done.unwrap_or_else(|error| panic!("{error}\njournal of flanneld:\n{}", machine.journal("flanneld")));
}

/// Whether the output matches the lines of the page, in which `...` stands for any text.
fn matches(expected: &[String], output: &str) -> bool {
    let expected = expected.join("\n");
    if expected.is_empty() {
        return true;
    }
    // Columns may be wider than on the page.
    let words = |text: &str| {
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.collect::<Vec<_>>().join("\n")
    };
    wildcard::matches(&words(&expected), &words(output))
}

/// Copies files to another machine in place of `scp`.
fn copy(from: &Machine, arguments: &str, machines: &[Machine]) {
    let mut words: Vec<&str> = arguments.split_whitespace().collect();
    let (host, directory) = words.pop().unwrap().split_once(':').unwrap();
    let to = machines.iter().find(|machine| machine.name == host).unwrap();
    for file in words {
        let name = file.rsplit('/').next().unwrap();
        let text = std::fs::read_to_string(from.path(file)).unwrap();
        to.write(&format!("{}/{name}", directory.trim_end_matches('/')), &text);
    }
}

#[test]
fn dots_on_a_page_match_any_text() {
    let is = |page: &str, output: &str| matches(&[page.to_owned()], output);
    assert!(is("a ... d", "a  b\nc d"));
    assert!(is("a\n...", "a\nb\nc"));
    assert!(!is("a", "a b"), "more came out than is shown");
    assert!(is("", "a"), "nothing is shown");
}

#[test]
fn a_command_may_have_several_lines() {
    let steps =
        steps("```console\nall# cat >x <<'END'\na\nhost-1# b\nEND\nhost-1# one \\\n  two\nout\n```\n");
    let seen: Vec<_> =
        steps.iter().map(|step| (step.who.as_str(), step.command.as_str(), step.output.len())).collect();
    assert_eq!(seen, [("all", "cat >x <<'END'\na\nhost-1# b\nEND", 0), ("host-1", "one \\\n  two", 1)]);
}
