//! What stands on the page.

use std::error::Error;
use std::path::Path;

use flannel_benches::figures::Figure;

use crate::plot::{self, Labels};
use crate::table::{columns, distinct, table};

/// The beginning of the page.
pub(crate) const HEAD: &str = "\
# Benchmarks

Made by `./scripts/bench`, which runs every bench and writes this page; `./scripts/bench --quick` takes small sizes and
few rounds, and writes to `target/benchmarks`. Numbers are medians, with the smallest and the largest of the rounds in
parentheses; where nothing stands in parentheses, all rounds came to the same, or there was one. What is compared was
measured in one run on one machine, hosts, traffic generator and etcd together:

> {machine}

A ratio says more than a time: another machine has other times.
";

/// One part of the page.
pub(crate) struct Section {
    title: &'static str,
    text: &'static str,
    bench: &'static str,
    /// Which of the bench's figures the table shows, by the beginning of their names; all if there are none.
    rows: &'static [&'static str],
    /// What the cases are.
    case: &'static str,
    plots: &'static [Plot],
}

/// One plot of a section.
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

/// The parts, in their order.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        title: "Putting all peers into the kernel",
        text: "Route, neighbour and forwarding entry of each peer. *floor*: the same objects as bytes that were \
               prepared before the clock starts, by the fastest way known. *one by one*: one request at a time, as \
               upstream writes. *repair*: everything was flushed by somebody else.",
        bench: "convergence",
        rows: &["first start, ms", "first start, ratio", "restart, ms", "repair, ms"],
        case: "peers",
        plots: &[Plot { file: "convergence.svg", what: "first start, ms", x: "peers", shape: Shape::Lines }],
    },
    Section {
        title: "One change among many",
        text: "*one change*: one peer gets a new device, on top of N. *event to kernel*: a host joins the registry, \
               until the kernel tells of the route to it.",
        bench: "convergence",
        rows: &["one change", "event to kernel"],
        case: "peers",
        plots: &[],
    },
    Section {
        title: "The whole daemon, with its leases in a real etcd",
        text: "From the start of the process until all peers are reachable and `subnet.env` is written. *list*: all \
               records read by a bare etcd client, for comparison.",
        bench: "cold_start",
        rows: &["time"],
        case: "leases",
        plots: &[Plot { file: "cold-start.svg", what: "time, ms", x: "leases", shape: Shape::Lines }],
    },
    Section {
        title: "Memory",
        text: "Of the daemon's process, with all that links it, after the start and at its peak.",
        bench: "cold_start",
        rows: &["memory"],
        case: "leases",
        plots: &[Plot { file: "memory.svg", what: "memory, MiB", x: "leases", shape: Shape::Lines }],
    },
    Section {
        title: "Many hosts start at the same moment",
        text: "All in one process, each with its own connection, manager and reconcile loop, and a kernel that is \
               played. Calls are requests to the registry until every host knows every other one. Scattered \
               addresses are the worst case for choosing a subnet that nobody else chooses.",
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
        text: "Simulated in one process on a clock that jumps, each with its own manager, reconcile loop and a kernel \
               made of maps: they join within an hour, then half a day of peace passes. Calls are those of one host to \
               the registry. Time and memory are the whole run's over the number of pairs of hosts: what it costs one \
               host to learn of one other, to program it and to keep it.",
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
        title: "Healing",
        text: "Somebody breaks one host of three. *kernel*: until all is as it was. *silence*: the longest time between \
               two answers to a ping that is sent every millisecond.",
        bench: "healing",
        rows: &[],
        case: "damage",
        plots: &[],
    },
    Section {
        title: "The UDP packet path",
        text: "Beside the raw link, the kernel's VXLAN, and one packet per system call, all between the same two hosts. \
               *one*, *four*, *both*: TCP streams, Gbit/s. *64 B*, *bursts*: small datagrams, thousands a second. \
               *rtt*, *loaded*: round trip at rest and beside a stream, µs. *cpu*: seconds of processor per GiB.",
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
    /// Draws the plots and returns the text; a bench that kept no figures leaves its part out.
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

/// As many columns still fit on a page.
const WIDEST: usize = 8;

/// A table for each thing that was measured.
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

/// A row for each series where there are no cases.
fn turned(figures: &[&Figure]) -> String {
    let turned: Vec<Figure> = figures
        .iter()
        .map(|figure| Figure { at: figure.series.clone(), series: String::new(), ..(*figure).clone() })
        .collect();
    table(&turned.iter().collect::<Vec<_>>(), "path")
}
