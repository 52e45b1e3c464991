//! HTTP/2 frames (RFC 9113, section 4.1), as far as needed to distinguish watches from unary calls. Pure.

use std::collections::BTreeSet;

/// The client's preface of an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
/// Progress responses are shorter, and events of a lease longer.
const EVENT: usize = 75;

/// How the proxy treats server messages of open calls: watches and renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchFault {
    /// Forwards them.
    None,
    /// Drops events and forwards other messages.
    Lost,
    /// Drops all messages.
    Withheld,
    /// Repeats the first event after each event.
    Repeated,
    /// Resets the call after its first message.
    CutShort,
}

/// Both directions of a connection. A connection without HTTP/2 is forwarded unchanged.
#[derive(Default)]
pub(crate) struct Streams {
    is_http2: bool,
    asked: Vec<u8>,
    seen: Vec<u8>,
    /// Calls that the client has not half-closed.
    open: BTreeSet<[u8; 4]>,
    /// Calls that were reset.
    reset: BTreeSet<[u8; 4]>,
    first_event: Option<Vec<u8>>,
}

impl Streams {
    /// Inspects client data, and returns it.
    pub(crate) fn on_client_data(&mut self, bytes: &[u8]) -> Vec<u8> {
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

    /// Inspects server data, and returns what the client receives.
    pub(crate) fn on_server_data(&mut self, bytes: &[u8], fault: WatchFault) -> Vec<u8> {
        if !self.is_http2 {
            return bytes.to_vec();
        }
        self.seen.extend(bytes);
        let mut carried = Vec::new();
        while let Some(frame) = take_frame(&mut self.seen) {
            let is_watch_data = kind(&frame) == DATA && self.open.contains(&stream(&frame));
            let is_event = is_watch_data && frame.len() > EVENT;
            if is_event && self.first_event.is_none() {
                self.first_event = Some(frame.clone());
            }
            match fault {
                WatchFault::Withheld if is_watch_data => {}
                WatchFault::Lost if is_event => {}
                WatchFault::Repeated if is_event => {
                    carried.extend(frame);
                    carried.extend(self.first_event.iter().flatten());
                }
                _ if self.reset.contains(&stream(&frame)) => {}
                WatchFault::CutShort if is_watch_data => {
                    self.reset.insert(stream(&frame));
                    carried.extend(&frame);
                    // The payload is an error code; 8 is CANCEL.
                    carried
                        .extend([0, 0, 4, RST_STREAM, 0].iter().chain(&stream(&frame)).chain(&[0, 0, 0, 8]));
                }
                WatchFault::None
                | WatchFault::Withheld
                | WatchFault::Lost
                | WatchFault::Repeated
                | WatchFault::CutShort => {
                    carried.extend(frame);
                }
            }
        }
        carried
    }
}

/// Removes and returns the first frame if it is complete: three bytes of length, type, flags, stream id and payload.
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
