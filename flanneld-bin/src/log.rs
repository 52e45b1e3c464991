//! The log: one line per event on standard error, in the format of glog, which operators grep and log shippers parse
//! ([`glog`]), or in JSON ([`json`]).

use std::fmt::Write as _;
use std::io::{self, Write as _};

use jiff::Zoned;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use fields::Fields;
use levels::Levels;

mod fields;
mod glog;
mod json;
mod levels;

pub(crate) use levels::ModuleLevel;
use levels::SourceLine;

/// How much to log, and in which format.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct LogOptions {
    /// The value of `-v`: from 1 flannel's own crates log debug events, from 4 trace events. Other crates log info events
    /// and above.
    pub(crate) verbosity: i64,
    /// The value of `-vmodule`: source files that log more than that.
    pub(crate) modules: Vec<ModuleLevel>,
    /// The value of `-log-format`.
    pub(crate) format: LogFormat,
}

/// The format of a line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum LogFormat {
    /// The format of glog.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Sends the log of this process to standard error.
pub(crate) fn start(options: &LogOptions) {
    // Fails only if it was called before.
    let _ = tracing::subscriber::set_global_default(subscriber(options, io::stderr));
}

/// The subscriber that [`start`] installs, writing to `writer`.
fn subscriber<W>(options: &LogOptions, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let LogOptions { verbosity, ref modules, format } = *options;
    let lines = Lines { format, writer };
    tracing_subscriber::registry().with(Levels::new(verbosity, modules.clone()).filter()).with(lines)
}

/// Writes each event as a line: its own fields, then those of the enclosing spans.
struct Lines<W> {
    format: LogFormat,
    writer: W,
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.pairs.extend_from_slice(&of_span.pairs);
            }
        }
        let metadata = event.metadata();
        let line = Line {
            level: *metadata.level(),
            time: Zoned::now(),
            process: std::process::id(),
            source: SourceLine::of(metadata),
            fields: &fields,
        };
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = match self.format {
            LogFormat::Text => writeln!(text, "{}", glog::Text(&line)),
            LogFormat::Json => writeln!(text, "{}", json::object(&line)),
        };
        // With standard error closed there is nowhere to report the failure.
        let _ = self.writer.make_writer_for(metadata).write_all(text.as_bytes());
    }
}

/// One event.
struct Line<'a> {
    level: tracing::Level,
    time: Zoned,
    process: u32,
    source: SourceLine,
    fields: &'a Fields,
}

#[cfg(test)]
pub(crate) mod tests;
