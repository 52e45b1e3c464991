//! Responses of etcd's v2 interface. Pure.
//!
//! See etcd's `Documentation/v2/api.md`: the headers carry the state of the store, and the body is one JSON object, for an
//! error with a code (`Documentation/v2/errorcode.md`).

use std::time::SystemTime;

use flannel_core::{BoxError, Term};
use hyper::HeaderMap;
use hyper::header::DATE;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::etcd::Position;

/// The headers that describe the state of the store and the member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StoreHeaders {
    /// `X-Etcd-Index`: the response includes all changes up to this index.
    pub(super) index: Option<u64>,
    /// `X-Etcd-Cluster-Id`.
    pub(super) cluster: Option<u64>,
    /// `X-Raft-Term`.
    pub(super) term: Option<u64>,
    /// `X-Raft-Index`. A cluster with expiring keys commits the time twice a second.
    pub(super) raft: Option<u64>,
    /// `Date` (RFC 9110, section 6.6.1): the member's time, in whole seconds.
    pub(super) date: Option<SystemTime>,
}

impl StoreHeaders {
    /// Parses the headers. Those that an intermediary removed are `None`.
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

    /// Returns the position of the member, with missing parts taken from `known`.
    pub(super) fn position(&self, known: Position) -> Position {
        Position {
            cluster: self.cluster.or(known.cluster),
            term: self.term.unwrap_or(known.term),
            revision: self.index.unwrap_or(known.revision),
        }
    }
}

/// The body of a successful response: a key's state, or an event.
#[derive(Debug, Deserialize)]
pub(super) struct KeyResponse<'a> {
    pub(super) action: String,
    #[serde(borrow)]
    pub(super) node: Node<'a>,
}

/// A key, which holds either a value or a directory.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node<'a> {
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
    #[serde(default)]
    pub(super) dir: bool,
    /// The entries of a directory. Parsed one level at a time, because directories may nest arbitrarily deep.
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
    /// Returns whether the key expires.
    pub(super) fn term(&self) -> Term {
        if self.expiration.is_some() || self.ttl.is_some() { Term::Limited } else { Term::Permanent }
    }
}

/// Parses the body of a successful response.
pub(super) fn parse(body: &[u8]) -> Result<KeyResponse<'_>, BoxError> {
    serde_json::from_slice(body).map_err(|error| format!("invalid response: {error}").into())
}

/// Returns true if a host released its lease: only hosts compare when they delete.
pub(super) fn is_release(action: &str) -> bool {
    action == "compareAndDelete"
}

/// Reports whether an event removed its key.
pub(super) fn is_removal(action: &str) -> bool {
    matches!(action, "delete" | "expire" | "compareAndDelete")
}

/// An error response of etcd.
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
    pub(super) const UNAUTHORIZED: u64 = 110;
    pub(super) const WATCHER_CLEARED: u64 = 400;
    pub(super) const INDEX_CLEARED: u64 = 401;

    /// Parses an error; `None` if the body is not from etcd.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok()
    }

    /// Reports whether Raft failed, in which case a write may have been applied.
    pub(super) fn is_raft_error(&self) -> bool {
        (300..400).contains(&self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_an_expiration_is_permanent() {
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
    fn an_error_is_formatted_as_in_upstream_flannel() {
        let error = br#"{"errorCode":100,"message":"Key not found","cause":"/kubernetes","index":12}"#;
        assert_eq!(EtcdError::parse(error).unwrap().to_string(), "100: Key not found (/kubernetes) [12]");
        assert!(EtcdError::parse(b"404 page not found").is_none());
        assert!(EtcdError::parse(br#"{"message":"no code"}"#).is_none());
    }

    #[test]
    fn missing_headers_keep_the_known_position() {
        let mut headers = HeaderMap::new();
        headers.insert("X-Etcd-Cluster-Id", "f106464acb84338e".parse().unwrap());
        headers.insert("X-Etcd-Index", "110".parse().unwrap());
        headers.insert("X-Raft-Index", "many".parse().unwrap());
        let parsed = StoreHeaders::read(&headers);
        assert_eq!(parsed.raft, None);
        let known = Position { cluster: None, term: 3, revision: 100 };
        let expected = Position { cluster: Some(0xf106_464a_cb84_338e), term: 3, revision: 110 };
        assert_eq!(parsed.position(known), expected);
    }
}
