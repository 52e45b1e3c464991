//! The log of the daemon on standard error, an event a line: in the format of glog, which operators grep and log shippers
//! parse ([`glog`]), or in JSON ([`json`]).

use std::backtrace::Backtrace;
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

pub(crate) use levels::{ModuleLevel, Place};

/// What is logged, and how.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct LogOptions {
    /// The value of `-v`: 1 to 3 add the decisions of flannel's own crates, 4 and above all that they say. Other crates
    /// are heard from info upwards.
    pub(crate) verbosity: i64,
    /// The value of `-vmodule`: files that say more than that.
    pub(crate) modules: Vec<ModuleLevel>,
    /// The value of `-log_backtrace_at`: the place whose events show how the program came there.
    pub(crate) backtrace_at: Option<Place>,
    /// The value of `-log-format`.
    pub(crate) format: LogFormat,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum LogFormat {
    /// That of glog.
    #[default]
    Text,
    /// An object in JSON.
    Json,
}

/// Sends the log of this process to standard error.
pub(crate) fn start(options: &LogOptions) {
    // Only a second call can fail, and then the log is already going where it should.
    let _ = tracing::subscriber::set_global_default(subscriber(options, io::stderr));
}

/// The subscriber that [`start`] installs, writing to `writer`.
fn subscriber<W>(options: &LogOptions, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let LogOptions { verbosity, ref modules, ref backtrace_at, format } = *options;
    let lines = Lines { format, backtrace_at: backtrace_at.clone(), writer };
    tracing_subscriber::registry().with(Levels::new(verbosity, modules.clone()).filter()).with(lines)
}

/// Writes each event as a line, with the fields of the spans around it behind its own.
struct Lines<W> {
    format: LogFormat,
    backtrace_at: Option<Place>,
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

    fn on_record(&self, id: &Id, learned: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            learned.record(fields);
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
        let place = Place::of(metadata);
        let is_traced = self.backtrace_at.as_ref() == Some(&place);
        let line = Line {
            level: *metadata.level(),
            time: Zoned::now(),
            process: std::process::id(),
            place,
            fields: &fields,
            backtrace: is_traced.then(|| Backtrace::force_capture().to_string()),
        };
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = match self.format {
            LogFormat::Text => writeln!(text, "{}", glog::Text(&line)),
            LogFormat::Json => writeln!(text, "{}", json::object(&line)),
        };
        // A closed standard error leaves nobody to tell.
        let _ = self.writer.make_writer_for(metadata).write_all(text.as_bytes());
    }
}

/// What there is to say about an event.
struct Line<'a> {
    level: tracing::Level,
    time: Zoned,
    process: u32,
    place: Place,
    fields: &'a Fields,
    /// How the program came there, if that was asked for.
    backtrace: Option<String>,
}

#[cfg(test)]
pub(crate) mod tests;
