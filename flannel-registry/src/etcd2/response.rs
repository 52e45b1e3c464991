//! What etcd's answers say. Pure.
//!
//! The form is that of etcd's `Documentation/v2/api.md`: the state of the store in the head, one JSON object in the
//! body, and for an error another one with a code of its own (`Documentation/v2/errorcode.md`).

use std::time::SystemTime;

use flannel_core::{BoxError, Term};
use hyper::HeaderMap;
use hyper::header::DATE;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::etcd::Position;

/// Where the member that answered stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    /// `X-Etcd-Index`: all changes up to this one are in the answer.
    pub(super) index: Option<u64>,
    /// `X-Etcd-Cluster-Id`.
    pub(super) cluster: Option<u64>,
    /// `X-Raft-Term`.
    pub(super) term: Option<u64>,
    /// `X-Raft-Index`. A cluster with limited leases writes down twice a second what time it is.
    pub(super) raft: Option<u64>,
    /// `Date` (RFC 9110, section 6.6.1): what time it is there, to the second.
    pub(super) date: Option<SystemTime>,
}

impl Head {
    /// Reads the head of an answer. What an intermediary took away is not there.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let number = |name: &str, radix| {
            let text = headers.get(name)?.to_str().ok()?;
            u64::from_str_radix(text, radix).ok()
        };
        Self {
            index: number("x-etcd-index", 10),
            cluster: number("x-etcd-cluster-id", 16),
            term: number("x-raft-term", 10),
            raft: number("x-raft-index", 10),
            date: headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok()),
        }
    }

    /// The position of the member, as far as it tells it; what it does not tell is as known before.
    pub(super) fn position(&self, known: Position) -> Position {
        Position {
            cluster: self.cluster.or(known.cluster),
            term: self.term.unwrap_or(known.term),
            revision: self.index.unwrap_or(known.revision),
        }
    }
}

/// What an answer says about one key, or what happened to it.
#[derive(Debug, Deserialize)]
pub(super) struct Told<'a> {
    pub(super) action: String,
    #[serde(borrow)]
    pub(super) node: Node<'a>,
}

/// A key: a value or a directory.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node<'a> {
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
    #[serde(default)]
    pub(super) dir: bool,
    /// What is in a directory. Kept as text: directories nest as deep as somebody likes.
    #[serde(borrow, default)]
    pub(super) nodes: Vec<&'a RawValue>,
    expiration: Option<String>,
    /// Seconds.
    pub(super) ttl: Option<i64>,
    #[serde(default)]
    pub(super) modified_index: u64,
    #[serde(default)]
    pub(super) created_index: u64,
}

impl Node<'_> {
    /// Whether the key ends by itself.
    pub(super) fn term(&self) -> Term {
        if self.expiration.is_some() || self.ttl.is_some() { Term::Limited } else { Term::Permanent }
    }
}

/// Reads what an answer says.
pub(super) fn read(body: &[u8]) -> Result<Told<'_>, BoxError> {
    serde_json::from_slice(body).map_err(|error| format!("an answer that cannot be read: {error}").into())
}

/// Tells whether an event took its key away.
pub(super) fn is_removal(action: &str) -> bool {
    matches!(action, "delete" | "expire" | "compareAndDelete")
}

/// An error in etcd's own words.
#[derive(Clone, Debug, Deserialize, thiserror::Error)]
#[error("{code}: {message} ({cause}) [{index}]")]
pub(super) struct EtcdError {
    #[serde(rename = "errorCode")]
    pub(super) code: u64,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) cause: String,
    #[serde(default)]
    pub(super) index: u64,
}

impl EtcdError {
    pub(super) const KEY_NOT_FOUND: u64 = 100;
    pub(super) const COMPARE_FAILED: u64 = 101;
    pub(super) const NOT_A_FILE: u64 = 102;
    pub(super) const NOT_A_DIRECTORY: u64 = 104;
    pub(super) const KEY_EXISTS: u64 = 105;
    pub(super) const WATCHER_CLEARED: u64 = 400;
    pub(super) const INDEX_CLEARED: u64 = 401;

    /// Reads an error; `None` if these are not etcd's words.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Tells whether the cluster could not agree, so that nobody knows what became of the request.
    pub(super) fn is_trouble(&self) -> bool {
        (300..400).contains(&self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_an_end_is_permanent() {
        let node = |text: &'static str| serde_json::from_str::<Node<'_>>(text).unwrap();
        assert_eq!(
            node(r#"{"key":"/a","value":"x","modifiedIndex":4,"createdIndex":4}"#).term(),
            Term::Permanent
        );
        let limited =
            node(r#"{"key":"/a","expiration":"2026-11-21T20:29:52.934054651Z","ttl":9,"modifiedIndex":4}"#);
        assert_eq!((limited.term(), limited.ttl, limited.modified_index), (Term::Limited, Some(9), 4));
    }

    #[test]
    fn an_error_is_shown_as_flannel_always_did() {
        let error = br#"{"errorCode":100,"message":"Key not found","cause":"/kubernetes","index":12}"#;
        assert_eq!(EtcdError::read(error).unwrap().to_string(), "100: Key not found (/kubernetes) [12]");
        assert!(EtcdError::read(b"404 page not found").is_none());
        assert!(EtcdError::read(br#"{"message":"no code"}"#).is_none());
    }

    #[test]
    fn what_a_head_does_not_tell_is_as_known_before() {
        let mut headers = HeaderMap::new();
        headers.insert("X-Etcd-Cluster-Id", "f106464acb84338e".parse().unwrap());
        headers.insert("X-Etcd-Index", "110".parse().unwrap());
        headers.insert("X-Raft-Index", "many".parse().unwrap());
        let head = Head::read(&headers);
        assert_eq!(head.raft, None);
        let known = Position { cluster: None, term: 3, revision: 100 };
        let expected = Position { cluster: Some(0xf106_464a_cb84_338e), term: 3, revision: 110 };
        assert_eq!(head.position(known), expected);
    }
}
