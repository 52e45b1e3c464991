//! The sections of the page.

use std::error::Error;
use std::path::Path;

use flannel_benches::figures::Figure;

use crate::plot::{self, Labels};
use crate::table::{columns, distinct, table};

/// The beginning of the page.
pub(crate) const HEAD: &str = "\
# Benchmarks

`./scripts/bench` runs every benchmark and writes this page; `./scripts/bench --quick` uses small sizes and few rounds, and
writes to `target/benchmarks`. Values are medians, with the minimum and maximum of the rounds in parentheses; without
parentheses, all rounds gave the same value, or there was one round. Values that are compared were measured in one run on
one machine, with hosts, traffic generator and etcd together:

> {machine}

Compare ratios rather than times: other machines have other times.
";

/// A section of the page.
pub(crate) struct Section {
    title: &'static str,
    text: &'static str,
    bench: &'static str,
    /// The figures in the table, by the beginning of their names; all if empty.
    rows: &'static [&'static str],
    /// The heading of the cases.
    case: &'static str,
    plots: &'static [Plot],
}

/// A plot of a section.
struct Plot {
    file: &'static str,
    what: &'static str,
    x: &'static str,
    shape: Shape,
}

enum Shape {
    Lines,
    Bars,
}

/// The sections, in order.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        title: "Programming all peers",
        text: "Route, neighbour and FDB entry of each peer. *floor*: the same objects as netlink messages \
               that were encoded before the clock starts, sent in the fastest known way. *one by one*: one \
               request at a time, as upstream does. *repair*: after all objects were flushed externally.",
        bench: "convergence",
        rows: &["first start, ms", "first start, ratio", "restart, ms", "repair, ms"],
        case: "peers",
        plots: &[Plot { file: "convergence.svg", what: "first start, ms", x: "peers", shape: Shape::Lines }],
    },
    Section {
        title: "A single change",
        text: "*one change*: one of N peers gets a new device. *event to kernel*: from the registration of \
               a new host until the kernel reports the route to it.",
        bench: "convergence",
        rows: &["one change", "event to kernel"],
        case: "peers",
        plots: &[],
    },
    Section {
        title: "The whole daemon, with leases in etcd",
        text: "From the start of the process until all peers are reachable and `subnet.env` is written. \
               *list*: time of a minimal etcd client to read all records, for comparison.",
        bench: "cold_start",
        rows: &["time"],
        case: "leases",
        plots: &[Plot { file: "cold-start.svg", what: "time, ms", x: "leases", shape: Shape::Lines }],
    },
    Section {
        title: "Memory",
        text: "Of the daemon process, after the start and at its peak.",
        bench: "cold_start",
        rows: &["memory"],
        case: "leases",
        plots: &[Plot { file: "memory.svg", what: "memory, MiB", x: "leases", shape: Shape::Lines }],
    },
    Section {
        title: "Simultaneous start of many hosts",
        text: "All hosts run in one process, each with its own connection, manager and reconcile loop, and \
               a simulated kernel. Calls are requests to the registry until every host knows every other \
               host. Scattered addresses are the worst case for conflicts over free subnets.",
        bench: "start",
        rows: &["calls per node", "conflicts"],
        case: "hosts",
        plots: &[
            Plot { file: "calls.svg", what: "calls per node", x: "hosts", shape: Shape::Lines },
            Plot { file: "start.svg", what: "all known, ms", x: "hosts", shape: Shape::Lines },
        ],
    },
    Section {
        title: "Ten thousand hosts",
        text: "Simulated in one process on a paused clock, each with its own manager, reconcile loop and a \
               kernel made of maps: the hosts join within an hour, then half a day passes without changes. \
               Calls are those of one host to the registry. Time and memory are those of the whole run \
               divided by the number of pairs of hosts: the cost for one host to learn, program and store \
               one peer.",
        bench: "scale",
        rows: &[],
        case: "hosts",
        plots: &[
            Plot { file: "scale-calls.svg", what: "calls to join", x: "hosts", shape: Shape::Lines },
            Plot {
                file: "scale-time.svg",
                what: "processor time per pair of hosts, µs",
                x: "hosts",
                shape: Shape::Lines,
            },
        ],
    },
    Section {
        title: "Repair",
        text: "An external change breaks one of three hosts. *kernel*: time until the kernel state is \
               restored. *silence*: the longest gap between two replies to a ping that is sent every \
               millisecond.",
        bench: "healing",
        rows: &[],
        case: "damage",
        plots: &[],
    },
    Section {
        title: "The UDP packet path",
        text: "Compared with the raw link, the kernel's VXLAN, and one packet per system call, all between \
               the same two hosts. *one*, *four*, *both*: TCP streams, Gbit/s. *64 B*, *bursts*: small \
               datagrams, thousands per second. *rtt*, *loaded*: round trip when idle and next to a stream, \
               µs. *cpu*: CPU seconds per GiB.",
        bench: "udp_path",
        rows: &[],
        case: "",
        plots: &[
            Plot { file: "udp-one.svg", what: "one", x: "one TCP stream, Gbit/s", shape: Shape::Bars },
            Plot { file: "udp-rtt.svg", what: "rtt", x: "round trip at rest, µs", shape: Shape::Bars },
        ],
    },
];

impl Section {
    /// Draws the plots and returns the text; omits the section of a bench without figures.
    pub(crate) fn write(&self, figures: &[Figure], directory: &Path) -> Result<String, Box<dyn Error>> {
        let ours: Vec<&Figure> = figures.iter().filter(|figure| figure.bench == self.bench).collect();
        if ours.is_empty() {
            return Ok(String::new());
        }
        let mut text = format!("\n## {}\n\n{}\n", self.title, self.text);
        for plot in self.plots {
            let shown: Vec<&Figure> =
                ours.iter().copied().filter(|figure| figure.what == plot.what).collect();
            let labels = Labels { x: plot.x, y: plot.what };
            let file = directory.join(plot.file);
            match plot.shape {
                Shape::Lines => plot::lines(&file, &labels, &shown)?,
                Shape::Bars => plot::bars(&file, &labels, &shown)?,
            }
            text.push_str(&format!("\n![{}, over {}]({})\n", plot.what, plot.x, plot.file));
        }
        let is_shown = |figure: &&Figure| {
            self.rows.is_empty() || self.rows.iter().any(|row| figure.what.starts_with(row))
        };
        let rows: Vec<&Figure> = ours.iter().copied().filter(is_shown).collect();
        let tables = match self.case {
            "" => turned(&rows),
            case if columns(&rows).len() > WIDEST => table_each(&rows, case),
            case => table(&rows, case),
        };
        text.push_str(&format!("\n{tables}"));
        Ok(text)
    }
}

/// The most columns that fit on a page.
const WIDEST: usize = 8;

/// Returns a table for each quantity.
fn table_each(figures: &[&Figure], case: &str) -> String {
    let tables = distinct(figures.iter().map(|figure| figure.what.as_str())).into_iter().map(|what| {
        let of_it: Vec<Figure> = figures
            .iter()
            .filter(|figure| figure.what == what)
            .map(|figure| Figure { what: figure.series.clone(), series: String::new(), ..(*figure).clone() })
            .collect();
        format!("{what}:\n\n{}", table(&of_it.iter().collect::<Vec<_>>(), case))
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// Returns a row for each series if there are no cases.
fn turned(figures: &[&Figure]) -> String {
    let turned: Vec<Figure> = figures
        .iter()
        .map(|figure| Figure { at: figure.series.clone(), series: String::new(), ..(*figure).clone() })
        .collect();
    table(&turned.iter().collect::<Vec<_>>(), "path")
}
