//! The log of the daemon: lines on standard error in the format of glog, which operators grep and log
//! shippers parse.
//!
//! ```text
//! I1121 01:02:03.123456    3068 main.rs:12] message key=value key="value with blanks"
//! ```

use std::error::Error;
use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;

use jiff::Zoned;
use jiff::civil::DateTime;
use tracing::field::{Field, Visit};
use tracing::span::Record;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;

/// Sends the log of this process to standard error.
///
/// `verbosity` is the value of `-v`: 1 to 3 add the decisions of flannel's own crates, 4 and above all
/// that they say. Other crates are heard from info upwards.
pub(crate) fn start(verbosity: i64) {
    // Only a second call can fail, and then the log is already going where it should.
    let _ = tracing::subscriber::set_global_default(subscriber(verbosity, io::stderr));
}

/// The subscriber that [`start`] installs, writing to `writer`.
fn subscriber<W>(verbosity: i64, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let own = match verbosity {
        ..=0 => LevelFilter::INFO,
        1..=3 => LevelFilter::DEBUG,
        4.. => LevelFilter::TRACE,
    };
    // Targets are module paths, and those of our crates begin with this.
    let levels = Targets::new().with_default(LevelFilter::INFO).with_target("flannel", own);
    let lines =
        tracing_subscriber::fmt::layer().event_format(GlogLines).fmt_fields(GlogFields).with_writer(writer);
    tracing_subscriber::registry().with(levels).with(lines)
}

/// One line of the log.
struct Line<'a> {
    level: Level,
    time: DateTime,
    process: u32,
    /// The path of the source file; only its name is written.
    file: &'a str,
    line: u32,
    message: &'a str,
    /// Pairs as [`Fields`] writes them: each ` key=value`.
    fields: &'a str,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.level {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            Level::INFO | Level::DEBUG | Level::TRACE => 'I',
        };
        let time = self.time;
        write!(
            f,
            "{letter}{:02}{:02} {:02}:{:02}:{:02}.{:06} {:7} {}:{}] ",
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.subsec_nanosecond() / 1000,
            self.process,
            Path::new(self.file).file_name().unwrap_or_default().display(),
            self.line,
        )?;
        write_on_one_line(f, self.message)?;
        f.write_str(self.fields)
    }
}

/// Writes `text` with its control characters escaped: an event is one line, whoever wrote its text.
fn write_on_one_line(f: &mut impl fmt::Write, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() {
            write!(f, "{}", c.escape_default())?;
        } else {
            f.write_char(c)?;
        }
    }
    Ok(())
}

/// Writes an event as a [`Line`], followed by the fields of the spans around it.
struct GlogLines;

impl<S, N> FormatEvent<S, N> for GlogLines
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        for span in context.event_scope().into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<FormattedFields<N>>() {
                fields.pairs.push_str(of_span);
            }
        }
        let metadata = event.metadata();
        let line = Line {
            level: *metadata.level(),
            time: Zoned::now().datetime(),
            process: std::process::id(),
            file: metadata.file().unwrap_or("???"),
            line: metadata.line().unwrap_or(1),
            message: fields.message.trim_end(),
            fields: &fields.pairs,
        };
        writeln!(writer, "{line}")
    }
}

/// Writes the fields of a span as [`Fields`] does.
struct GlogFields;

impl<'w> FormatFields<'w> for GlogFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, record: R) -> fmt::Result {
        let mut fields = Fields::default();
        record.record(&mut fields);
        writer.write_str(&fields.pairs)
    }

    /// Appends fields that a span learns later; [`Fields`] brings the blank between them.
    fn add_fields(&self, current: &'w mut FormattedFields<Self>, record: &Record<'_>) -> fmt::Result {
        self.format_fields(current.as_writer(), record)
    }
}

/// Collects the message of an event and its other fields, each as ` key=value`.
#[derive(Default)]
struct Fields {
    message: String,
    pairs: String,
}

impl Fields {
    /// Adds one field; a value that would not read as one word is quoted.
    fn add(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
            return;
        }
        let is_word =
            !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"');
        // Writing to a string cannot fail.
        let _ = if is_word {
            write!(self.pairs, " {}={value}", field.name())
        } else {
            write!(self.pairs, " {}={value:?}", field.name())
        };
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut chain = value.to_string();
        for source in std::iter::successors(value.source(), |&error| error.source()) {
            let _ = write!(chain, ": {source}");
        }
        self.add(field, &chain);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Runs `action` and returns the lines that it logs, from the message on.
    pub(crate) fn messages(verbosity: i64, action: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let copy = written.clone();
        tracing::subscriber::with_default(subscriber(verbosity, move || copy.clone()), action);
        let text = String::from_utf8(written.0.lock().expect("no panic").clone()).expect("text");
        text.lines().map(|line| line.split_once("] ").expect("a head").1.to_owned()).collect()
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(level: Level) -> Line<'static> {
        Line {
            level,
            time: jiff::civil::date(2026, 6, 6).at(6, 15, 37, 158_899_999),
            process: 3068,
            file: "flanneld-bin/src/main.rs",
            line: 349,
            message: "Couldn't fetch network config: 100: Key not found (/kubernetes) [12]",
            fields: "",
        }
    }

    #[test]
    fn a_line_has_the_columns_that_log_shippers_parse() {
        assert_eq!(
            line(Level::ERROR).to_string(),
            "E0606 06:15:37.158899    3068 main.rs:349] Couldn't fetch network config: 100: Key not found \
             (/kubernetes) [12]"
        );
        let late = Line {
            time: jiff::civil::date(2026, 11, 21).at(23, 59, 59, 1_000),
            process: 4_194_304,
            file: "x.rs",
            message: "lease acquired",
            fields: " subnet=10.1.2.0/24",
            ..line(Level::INFO)
        };
        assert_eq!(
            late.to_string(),
            "I1121 23:59:59.000001 4194304 x.rs:349] lease acquired subnet=10.1.2.0/24"
        );
    }

    #[test]
    fn the_first_letter_is_the_level() {
        for (level, letter) in [
            (Level::ERROR, 'E'),
            (Level::WARN, 'W'),
            (Level::INFO, 'I'),
            (Level::DEBUG, 'I'),
            (Level::TRACE, 'I'),
        ] {
            assert!(line(level).to_string().starts_with(letter), "{level}");
        }
    }

    #[test]
    fn a_message_from_the_network_cannot_forge_a_second_line() {
        let forged = Line { message: "bad\nE0101 \x1b[2Jfine\u{85}", ..line(Level::WARN) };
        assert!(forged.to_string().ends_with("bad\\nE0101 \\u{1b}[2Jfine\\u{85}"), "{forged}");
        let logged = messages(0, || tracing::warn!(why = "a\nb", "one\ntwo\n"));
        assert_eq!(logged, [r#"one\ntwo why="a\nb""#]);
    }

    #[test]
    fn fields_follow_the_message_and_those_of_spans_follow_them() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open")]
        struct Outer(#[source] io::Error);
        let logged = messages(0, || {
            let _outer = tracing::info_span!("network", backend = "vxlan").entered();
            let inner = tracing::info_span!("device", ifindex = 7, vni = tracing::field::Empty).entered();
            inner.record("vni", 1);
            let error = Outer(io::Error::other("no such device"));
            tracing::info!(mtu = 1450, name = "", error = &error as &dyn Error, "device made");
            tracing::info!(subnet = %"10.1.2.0/24", peer = ?Some(1));
        });
        assert_eq!(
            logged,
            [
                r#"device made mtu=1450 name="" error="cannot open: no such device" ifindex=7 vni=1 backend=vxlan"#,
                " subnet=10.1.2.0/24 peer=Some(1) ifindex=7 vni=1 backend=vxlan",
            ]
        );
    }

    #[test]
    fn verbosity_opens_flannels_own_crates_step_by_step() {
        let heard = |verbosity| {
            messages(verbosity, || {
                tracing::info!(target: "hyper::client", "other info");
                tracing::debug!(target: "hyper::client", "other debug");
                tracing::info!("info");
                tracing::debug!(target: "flannel_core::network", "debug");
                tracing::trace!(target: "flannel_netlink", "trace");
            })
        };
        assert_eq!(heard(-1), ["other info", "info"]);
        assert_eq!(heard(0), ["other info", "info"]);
        assert_eq!(heard(1), ["other info", "info", "debug"]);
        assert_eq!(heard(3), ["other info", "info", "debug"]);
        assert_eq!(heard(4), ["other info", "info", "debug", "trace"]);
        assert_eq!(heard(i64::MAX).len(), 4);
    }
}
