//! The cache file format: network config, own lease and peers.
//!
//! ```text
//! flannel cache 2
//! network /coreos.com/network
//! store cdf818194e3a8c32 http://10.0.0.10:2379
//! config {"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}
//! own 10.5.1.0-24 17 limited {"PublicIP":"192.168.0.1",...}
//! peer 10.5.2.0-24 {"PublicIP":"192.168.0.2",...}
//! crc32 1c291ca3
//! ```
//!
//! Keys and records are those of the registry. The last line is the CRC-32 (IEEE 802.3) of all bytes before it. A file of
//! another version, or with any error, is rejected as a whole.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;
use std::sync::Arc;

use flannel_core::{BoxError, Lease, LeaseAttrs, NetworkConfig, Revision, StoreIdentity, Term};

const VERSION: &str = "flannel cache 2";
/// Placeholder for a store without an id.
const NAMELESS: &str = "-";
const CHECKSUM: &str = "crc32 ";
/// Larger files are not caches: 100,000 peers take less than half of it.
const MAX_SIZE: u64 = 64 << 20;

/// The content of a cache file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cache {
    /// The store that the data is from.
    pub(crate) store: StoreIdentity,
    pub(crate) config: NetworkConfig,
    pub(crate) own: Lease,
    /// The peers, without revisions and terms.
    pub(crate) peers: Vec<Arc<Lease>>,
}

/// Why a file is rejected. The next write replaces it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CacheError(String);

impl Cache {
    /// Formats the file for a network.
    pub(crate) fn write(&self, network: &str) -> String {
        let own = &self.own;
        let term = match own.term {
            Term::Limited => "limited",
            Term::Permanent => "permanent",
        };
        let mut text = format!("{VERSION}\nnetwork {}\n", network.escape_debug());
        let StoreIdentity { id, addresses, .. } = &self.store;
        let words =
            [id.as_deref().unwrap_or(NAMELESS)].into_iter().chain(addresses.iter().map(String::as_str));
        text.push_str(&format!("store {}\n", words.collect::<Vec<_>>().join(" ").escape_debug()));
        text.push_str(&format!("config {}\n", one_line(self.config.source.as_str())));
        let record = one_line(&own.attrs.to_record());
        text.push_str(&format!("own {} {} {term} {record}\n", own.subnet, own.revision));
        for peer in &self.peers {
            text.push_str(&format!("peer {} {}\n", peer.subnet, one_line(&peer.attrs.to_record())));
        }
        let last = checksum(&text);
        text + &last
    }

    /// Parses a file if it belongs to a network.
    pub(crate) fn parse(bytes: &[u8], network: &str) -> Result<Self, CacheError> {
        let text = std::str::from_utf8(bytes).map_err(|_| reject("not UTF-8"))?;
        if text.lines().next() != Some(VERSION) {
            return Err(reject("other format version"));
        }
        let mut lines = checked(text)?.lines().skip(1);
        let mut next = |word: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(word)?.strip_prefix(' '));
            line.ok_or_else(|| reject(&format!("line {word:?} is missing")))
        };
        if next("network")? != network.escape_debug().to_string() {
            return Err(reject("belongs to another network"));
        }
        let store = store(next("store")?);
        let config = NetworkConfig::parse(next("config")?).map_err(|error| reject(&error.to_string()))?;
        let own = own(next("own")?)?;
        let peers = lines.map(peer).collect::<Result<_, _>>()?;
        Ok(Self { store, config, own, peers })
    }
}

/// Reads the cache file of a network; `None` if there is no file.
pub(crate) fn read_cache(path: &Path, network: &str) -> Result<Option<Cache>, BoxError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok(Some(Cache::parse(&bytes, network)?))
}

/// Returns the checksum line of a body.
fn checksum(body: &str) -> String {
    format!("{CHECKSUM}{:08x}\n", crc32fast::hash(body.as_bytes()))
}

/// Returns the body if its checksum is valid.
fn checked(text: &str) -> Result<&str, CacheError> {
    let cut = || reject("truncated");
    let body = text.strip_suffix('\n').ok_or_else(cut)?;
    let (start, _) = body.rmatch_indices('\n').next().ok_or_else(cut)?;
    let (body, last) = text.split_at(start + 1);
    if !last.starts_with(CHECKSUM) {
        return Err(cut());
    }
    if last == checksum(body) { Ok(body) } else { Err(reject("invalid checksum")) }
}

fn store(line: &str) -> StoreIdentity {
    let mut words = line.split(' ').map(str::to_owned);
    let id = words.next().filter(|id| id != NAMELESS);
    StoreIdentity::new(id, words.collect())
}

fn own(line: &str) -> Result<Lease, CacheError> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().ok_or_else(|| reject("own lease: a field is missing"));
    let (subnet, revision, term, record) = (word()?, word()?, word()?, word()?);
    let term = match term {
        "limited" => Term::Limited,
        "permanent" => Term::Permanent,
        _ => return Err(reject("own lease: invalid term")),
    };
    let revision = revision.parse().map_err(|_| reject("own lease: invalid revision"))?;
    lease(subnet, record, Revision(revision), term)
}

fn peer(line: &str) -> Result<Arc<Lease>, CacheError> {
    let words = line.strip_prefix("peer ").and_then(|line| line.split_once(' '));
    let (subnet, record) = words.ok_or_else(|| reject("invalid peer line"))?;
    lease(subnet, record, Revision::default(), Term::Limited).map(Arc::new)
}

fn lease(subnet: &str, record: &str, revision: Revision, term: Term) -> Result<Lease, CacheError> {
    let bad = |error: &dyn std::error::Error| reject(&format!("lease {subnet:?}: {error}"));
    let key = subnet.parse().map_err(|error| bad(&error))?;
    let attrs = LeaseAttrs::from_record(record).map_err(|error| bad(&error))?;
    Ok(Lease { subnet: key, attrs, revision, term })
}

fn reject(why: &str) -> CacheError {
    CacheError(why.to_owned())
}

/// Joins the lines of JSON text, in which line ends occur only between tokens (RFC 8259, section 7).
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NETWORK: &str = "/coreos.com/network";

    fn cache(peers: &[(&str, &str)]) -> Cache {
        let own =
            r#"{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}"#;
        Cache {
            store: StoreIdentity::new(
                Some("cdf818194e3a8c32".to_owned()),
                vec!["http://10.0.0.1:2379".to_owned(), "http://10.0.0.2:2379".to_owned()],
            ),
            config: NetworkConfig::parse("{\"Network\":\"10.5.0.0/16\",\n\"Backend\":{\"Type\":\"vxlan\"}}")
                .unwrap(),
            own: lease("10.5.1.0-24", own, Revision(17), Term::Permanent).unwrap(),
            peers: peers
                .iter()
                .map(|(key, record)| {
                    lease(key, record, Revision::default(), Term::Limited).map(Arc::new).unwrap()
                })
                .collect(),
        }
    }

    fn sealed(body: &str) -> String {
        format!("{body}{}", checksum(body))
    }

    #[test]
    fn a_cache_survives_formatting_and_parsing() {
        let peers = [
            ("10.5.2.0-24", r#"{"PublicIP":"192.168.0.2","BackendData":{"a b":"c"}}"#),
            ("10.5.3.0-24&fd00:1::-64", r#"{"PublicIP":"192.168.0.3","PublicIPv6":"fd00::3"}"#),
        ];
        let known = cache(&peers);
        let text = known.write(NETWORK);
        let read = Cache::parse(text.as_bytes(), NETWORK).unwrap();
        assert_eq!((&read.store, &read.own, &read.peers), (&known.store, &known.own, &known.peers));
        let nameless = Cache { store: StoreIdentity::default(), ..known.clone() };
        assert_eq!(Cache::parse(nameless.write(NETWORK).as_bytes(), NETWORK).unwrap().store.id, None);
        assert_eq!((read.config.ipv4, &read.config.backend), (known.config.ipv4, &known.config.backend));
        assert_eq!(read.write(NETWORK), text);
        assert_eq!(text.lines().count(), 8, "{text}");
    }

    #[test]
    fn a_cache_of_another_network_or_version_is_rejected() {
        let text = cache(&[]).write("a\nb");
        assert!(Cache::parse(text.as_bytes(), "a\nb").is_ok());
        let rejected = |text: &str, network| Cache::parse(text.as_bytes(), network).unwrap_err().to_string();
        assert_eq!(rejected(&text, "a"), "belongs to another network");
        assert_eq!(rejected(&text.replace("cache 2", "cache 1"), "a\nb"), "other format version");
        assert_eq!(rejected("", "a"), "other format version");
    }

    #[test]
    fn an_invalid_line_is_named_despite_a_valid_checksum() {
        let text = cache(&[]).write(NETWORK);
        let body = checked(&text).unwrap();
        for (from, to, why) in [
            ("own ", "wrong ", r#"line "own" is missing"#),
            (" permanent ", " eternal ", "own lease: invalid term"),
            (" 17 ", " -1 ", "own lease: invalid revision"),
            ("10.5.0.0/16", "10.5.0.0/33", "invalid CIDR address: 10.5.0.0/33 (Network)"),
        ] {
            let text = sealed(&body.replace(from, to));
            assert_eq!(Cache::parse(text.as_bytes(), NETWORK).unwrap_err().to_string(), why);
        }
        let text = sealed(&format!("{body}nonsense\n"));
        assert!(Cache::parse(text.as_bytes(), NETWORK).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>, body: String) {
            prop_assert!(Cache::parse(&bytes, NETWORK).is_err());
            let _ = Cache::parse(sealed(&format!("{VERSION}\n{body}\n")).as_bytes(), NETWORK);
            let head = format!("{VERSION}\nnetwork {NETWORK}\nstore -\nconfig {{\"Network\":\"10.5.0.0/16\"}}\n");
            let _ = Cache::parse(sealed(&format!("{head}{body}\n")).as_bytes(), NETWORK);
            let _ = Cache::parse(sealed(&format!("{head}own {body}\npeer {body}\n")).as_bytes(), NETWORK);
        }

        #[test]
        fn one_changed_or_missing_byte_is_detected(at in 0_usize..300, to: u8) {
            let text = cache(&[("10.5.2.0-24", r#"{"PublicIP":"192.168.0.2"}"#)]).write(NETWORK).into_bytes();
            let at = at % text.len();
            let mut changed = text.clone();
            changed[at] = to;
            prop_assert!(changed == text || Cache::parse(&changed, NETWORK).is_err());
            prop_assert!(Cache::parse(&text[..at], NETWORK).is_err());
        }
    }
}
