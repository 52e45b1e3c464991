//! Lines in JSON, one object each.
//!
//! ```text
//! {"time":"2026-11-21T01:02:03.123456Z","level":"info","process":3068,"place":"main.rs:12","message":"…","fields":{…}}
//! ```

use serde::Serialize;
use serde_json::{Map, Value};
use tracing::Level;

use super::Line;

/// The members in their order. Their names are stable.
#[derive(Serialize)]
struct Object<'a> {
    /// RFC 3339, in UTC, with microseconds.
    time: String,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    level: &'static str,
    process: u32,
    /// File and line in the source.
    place: String,
    message: &'a str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    fields: Map<String, Value>,
}

/// Returns the line without its newline.
pub(super) fn object(line: &Line<'_>) -> String {
    let Line { level, time, process, source, fields } = line;
    // The pairs of the event come first and take precedence over those of the spans.
    let fields_by_name = fields.pairs.iter().rev().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let object = Object {
        time: format!("{:.6}", time.timestamp()),
        level: name(*level),
        process: *process,
        place: source.to_string(),
        message: fields.message.trim_end(),
        fields: fields_by_name.collect(),
    };
    // String keys and JSON values cannot fail.
    serde_json::to_string(&object).unwrap_or_default()
}

fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}
