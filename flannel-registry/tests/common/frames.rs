//! The frames of HTTP/2 (RFC 9113, section 4.1), as far as is needed to tell a watch from a single call. Pure.

use std::collections::BTreeSet;

/// How a connection of HTTP/2 begins on the client's side (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
/// A word of etcd that tells nothing is shorter, and an event of a lease longer.
const EVENT: usize = 75;

/// What becomes of what a server says in calls that the client keeps open: watches and renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It is carried.
    Told,
    /// Events are lost, and other words carried.
    Lost,
    /// Everything is lost.
    Withheld,
    /// After each event the first one is told again.
    Repeated,
    /// The call is reset after its first word.
    CutShort,
}

/// Both directions of one connection. One that does not speak HTTP/2 is carried as it is.
#[derive(Default)]
pub(crate) struct Streams {
    is_http2: bool,
    asked: Vec<u8>,
    told: Vec<u8>,
    /// Calls that the client keeps open.
    open: BTreeSet<[u8; 4]>,
    /// Calls that were cut short.
    reset: BTreeSet<[u8; 4]>,
    first_event: Option<Vec<u8>>,
}

impl Streams {
    /// Looks at what a client sends, and answers with it.
    pub(crate) fn asked(&mut self, bytes: &[u8]) -> Vec<u8> {
        let frames = match bytes.strip_prefix(PREFACE) {
            Some(frames) => {
                self.is_http2 = true;
                frames
            }
            None => bytes,
        };
        if self.is_http2 {
            self.asked.extend(frames);
            while let Some(frame) = take_frame(&mut self.asked) {
                match (kind(&frame), frame[4] & END_STREAM) {
                    (HEADERS, 0) => drop(self.open.insert(stream(&frame))),
                    (HEADERS | DATA, END_STREAM) => drop(self.open.remove(&stream(&frame))),
                    _ => {}
                }
            }
        }
        bytes.to_vec()
    }

    /// Looks at what a server sends, and answers with what the client shall get.
    pub(crate) fn told(&mut self, bytes: &[u8], news: News) -> Vec<u8> {
        if !self.is_http2 {
            return bytes.to_vec();
        }
        self.told.extend(bytes);
        let mut carried = Vec::new();
        while let Some(frame) = take_frame(&mut self.told) {
            let is_news = kind(&frame) == DATA && self.open.contains(&stream(&frame));
            let is_event = is_news && frame.len() > EVENT;
            if is_event && self.first_event.is_none() {
                self.first_event = Some(frame.clone());
            }
            match news {
                News::Withheld if is_news => {}
                News::Lost if is_event => {}
                News::Repeated if is_event => {
                    carried.extend(frame);
                    carried.extend(self.first_event.iter().flatten());
                }
                _ if self.reset.contains(&stream(&frame)) => {}
                News::CutShort if is_news => {
                    self.reset.insert(stream(&frame));
                    carried.extend(&frame);
                    // Its payload is an error code; 8 is CANCEL.
                    carried
                        .extend([0, 0, 4, RST_STREAM, 0].iter().chain(&stream(&frame)).chain(&[0, 0, 0, 8]));
                }
                News::Told | News::Withheld | News::Lost | News::Repeated | News::CutShort => {
                    carried.extend(frame);
                }
            }
        }
        carried
    }
}

/// Takes out the first frame, if it is whole: a length of three bytes, a kind, flags, the number of the stream, and so
/// many bytes.
fn take_frame(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let [high, middle, low, ..] = *bytes.get(..9)? else { return None };
    let whole = 9 + u32::from_be_bytes([0, high, middle, low]) as usize;
    (bytes.len() >= whole).then(|| bytes.drain(..whole).collect())
}

fn kind(frame: &[u8]) -> u8 {
    frame[3]
}

fn stream(frame: &[u8]) -> [u8; 4] {
    [frame[5], frame[6], frame[7], frame[8]]
}
