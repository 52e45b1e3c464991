use std::sync::{Arc, Mutex};

use tracing::Level;

use super::*;

/// Runs `action` and returns the lines that it logs, from the message on.
pub(crate) fn messages(verbosity: i64, action: impl FnOnce()) -> Vec<String> {
    let lines = written(&LogOptions { verbosity, ..LogOptions::default() }, action);
    lines.iter().map(|line| line.split_once("] ").expect("a head").1.to_owned()).collect()
}

/// Runs `action` and returns the lines that it logs.
fn written(options: &LogOptions, action: impl FnOnce()) -> Vec<String> {
    let written = Written::default();
    let copy = written.clone();
    tracing::subscriber::with_default(subscriber(options, move || copy.clone()), action);
    let text = String::from_utf8(written.0.lock().expect("no panic").clone()).expect("text");
    text.lines().map(str::to_owned).collect()
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn fields(message: &str, pairs: &[(&'static str, &str)]) -> Fields {
    let pairs = pairs.iter().map(|(name, value)| (*name, (*value).into())).collect();
    Fields { message: message.to_owned(), pairs }
}

fn line<'a>(level: Level, time: &str, source: (&str, u32), fields: &'a Fields) -> Line<'a> {
    let time = time.parse().expect("a time");
    let source = SourceLine { file: source.0.to_owned(), line: source.1 };
    Line { level, time, process: 3068, source, fields }
}

#[test]
fn a_line_has_the_columns_that_log_shippers_parse() {
    let message = fields("Couldn't fetch network config: 100: Key not found (/kubernetes) [12]", &[]);
    let early = line(Level::ERROR, "2026-06-06T06:15:37.158899999[UTC]", ("main.rs", 349), &message);
    assert_eq!(
        glog::Text(&early).to_string(),
        "E0606 06:15:37.158899    3068 main.rs:349] Couldn't fetch network config: 100: Key not found \
         (/kubernetes) [12]"
    );
    let message = fields("lease acquired", &[("subnet", "10.1.2.0/24")]);
    let late = line(Level::INFO, "2026-11-21T23:59:59.000001[UTC]", ("x.rs", 349), &message);
    let late = Line { process: 4_194_304, ..late };
    assert_eq!(
        glog::Text(&late).to_string(),
        "I1121 23:59:59.000001 4194304 x.rs:349] lease acquired subnet=10.1.2.0/24"
    );
}

#[test]
fn the_first_letter_is_the_level() {
    let message = Fields::default();
    for (level, letter) in [
        (Level::ERROR, 'E'),
        (Level::WARN, 'W'),
        (Level::INFO, 'I'),
        (Level::DEBUG, 'I'),
        (Level::TRACE, 'I'),
    ] {
        let line = line(level, "2026-06-06T06:15:37[UTC]", ("main.rs", 349), &message);
        assert!(glog::Text(&line).to_string().starts_with(letter), "{level}");
    }
}

#[test]
fn json_times_are_in_utc() {
    let message = fields("bad \"peer\"\n", &[("subnet", "10.1.2.0/24")]);
    let line = line(Level::WARN, "2026-06-06T06:15:37.158899999+02:00[+02:00]", ("main.rs", 349), &message);
    assert_eq!(
        json::object(&line),
        r#"{"time":"2026-06-06T04:15:37.158899Z","level":"warn","process":3068,"place":"main.rs:349","message":"bad \"peer\"","fields":{"subnet":"10.1.2.0/24"}}"#
    );
}

#[test]
fn json_fields_keep_their_type_and_those_of_the_event_take_precedence() {
    let options = LogOptions { format: LogFormat::Json, ..LogOptions::default() };
    let lines = written(&options, || {
        let _span = tracing::info_span!("network", mtu = 9000, vni = 1).entered();
        tracing::info!(mtu = 1450, up = true, name = "a\nb", "one\ntwo");
        tracing::info!("bare");
    });
    let parse = |line: &String| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
    let objects: Vec<_> = lines.iter().map(parse).collect();
    assert_eq!(objects.len(), 2, "an event is a line: {lines:?}");
    assert_eq!(objects[0]["message"], "one\ntwo");
    assert_eq!(objects[0]["fields"], serde_json::json!({"mtu": 1450, "up": true, "name": "a\nb", "vni": 1}));
    assert_eq!(objects[1]["fields"], serde_json::json!({"mtu": 9000, "vni": 1}));
    assert_eq!((&objects[0]["level"], &objects[0]["process"]), (&"info".into(), &std::process::id().into()));
}

#[test]
fn vmodule_adds_verbosity_and_never_reduces_it() {
    let logged = |verbosity, list: &str| {
        let modules = ModuleLevel::parse_list(list).expect("a list");
        let lines = written(&LogOptions { verbosity, modules, ..LogOptions::default() }, || {
            tracing::info!("info");
            tracing::debug!("debug");
            tracing::trace!("trace");
        });
        lines.len()
    };
    for (verbosity, list, lines) in [
        (0, "", 1),
        (0, "iface=4", 1),
        (0, "tests=1", 2),
        (0, "test?=4", 3),
        (0, "iface=4,t*=4", 3),
        (0, "t*=1,tests=4", 2),
        (4, "tests=0", 3),
    ] {
        assert_eq!(logged(verbosity, list), lines, "-v={verbosity} -vmodule={list}");
    }
}

#[test]
fn a_message_from_the_network_cannot_forge_a_second_line() {
    let message = fields("bad\nE0101 \x1b[2Jfine\u{85}.", &[]);
    let forged = line(Level::WARN, "2026-06-06T06:15:37[UTC]", ("main.rs", 349), &message);
    let forged = glog::Text(&forged).to_string();
    assert!(forged.ends_with("bad\\nE0101 \\u{1b}[2Jfine\\u{85}."), "{forged}");
    let logged = messages(0, || tracing::warn!(why = "a\nb", "one\ntwo\n"));
    assert_eq!(logged, [r#"one\ntwo why="a\nb""#]);
}

#[test]
fn the_fields_of_the_event_precede_those_of_its_spans() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot open")]
    struct Outer(#[source] io::Error);
    let logged = messages(0, || {
        let _outer = tracing::info_span!("network", backend = "vxlan").entered();
        let inner = tracing::info_span!("device", ifindex = 7, vni = tracing::field::Empty).entered();
        inner.record("vni", 1);
        let error = Outer(io::Error::other("no such device"));
        tracing::info!(mtu = 1450, name = "", error = &error as &dyn std::error::Error, "device made");
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
fn verbosity_applies_to_flannels_own_crates_only() {
    let logged = |verbosity| {
        messages(verbosity, || {
            tracing::info!(target: "hyper::client", "other info");
            tracing::debug!(target: "hyper::client", "other debug");
            tracing::info!("info");
            tracing::debug!(target: "flannel_core::network", "debug");
            tracing::trace!(target: "flannel_netlink", "trace");
        })
    };
    assert_eq!(logged(-1), ["other info", "info"]);
    assert_eq!(logged(0), ["other info", "info"]);
    assert_eq!(logged(1), ["other info", "info", "debug"]);
    assert_eq!(logged(3), ["other info", "info", "debug"]);
    assert_eq!(logged(4), ["other info", "info", "debug", "trace"]);
    assert_eq!(logged(i64::MAX).len(), 4);
}
