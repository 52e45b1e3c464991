//! Lines in JSON, one object each.
//!
//! ```text
//! {"time":"2026-11-21T01:02:03.123456Z","level":"info","process":3068,"place":"main.rs:12","message":"…","fields":{…}}
//! ```

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Level;

use super::Line;

/// The members in the order in which they are written. Names are stable: programs read them.
#[derive(Serialize)]
struct Object<'a> {
    /// In UTC (RFC 3339), to the microsecond.
    time: String,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    level: &'static str,
    process: u32,
    /// File and line in the source.
    place: String,
    message: &'a str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    fields: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backtrace: Option<&'a str>,
}

/// The line as text, without its end.
pub(super) fn object(line: &Line<'_>) -> String {
    let Line { level, time, process, place, fields, backtrace } = line;
    // What the event says goes before what the spans around it say, which come later.
    let fields_by_name = fields.pairs.iter().rev().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let object = Object {
        time: format!("{:.6}", time.timestamp()),
        level: word(*level),
        process: *process,
        place: place.to_string(),
        message: fields.message.trim_end(),
        fields: fields_by_name.collect(),
        backtrace: backtrace.as_deref(),
    };
    // Keys that are text and values that came from JSON's own types cannot fail.
    serde_json::to_string(&object).unwrap_or_default()
}

fn word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}
