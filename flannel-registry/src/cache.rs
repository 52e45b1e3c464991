//! The text in which a host remembers its network: configuration, own lease and peers.
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
//! Keys and records are those of the registry. The last line is the CRC-32 (IEEE 802.3) of all bytes before it. A text
//! of another version, or with anything wrong in it, is refused as a whole: half a memory is worse than none.

use std::sync::Arc;

use flannel_core::{Lease, LeaseAttrs, NetworkConfig, Revision, StoreIdentity, Term};

const VERSION: &str = "flannel cache 2";
/// Stands for the name of a store that has none.
const NAMELESS: &str = "-";
const CHECKSUM: &str = "crc32 ";

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cache {
    /// Where it was learnt.
    pub(crate) store: StoreIdentity,
    pub(crate) config: NetworkConfig,
    pub(crate) own: Lease,
    /// Their revisions and terms are not remembered.
    pub(crate) peers: Vec<Arc<Lease>>,
}

/// Why a text is no memory of a network; nobody need correct it, the next one replaces it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CacheError(String);

impl Cache {
    /// Writes the text, for the network of this name.
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

    /// Reads the text, if it is about the network of this name.
    pub(crate) fn read(bytes: &[u8], network: &str) -> Result<Self, CacheError> {
        let text = std::str::from_utf8(bytes).map_err(|_| refuse("it is not UTF-8"))?;
        if text.lines().next() != Some(VERSION) {
            return Err(refuse("it is of another version"));
        }
        let mut lines = checked(text)?.lines().skip(1);
        let mut next = |word: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(word)?.strip_prefix(' '));
            line.ok_or_else(|| refuse(&format!("it has no line {word:?} where one should be")))
        };
        if next("network")? != network.escape_debug().to_string() {
            return Err(refuse("it is about another network"));
        }
        let store = store(next("store")?);
        let config = NetworkConfig::parse(next("config")?).map_err(|error| refuse(&error.to_string()))?;
        let own = own(next("own")?)?;
        let peers = lines.map(peer).collect::<Result<_, _>>()?;
        Ok(Self { store, config, own, peers })
    }
}

/// The last line of a text that begins with `body`.
fn checksum(body: &str) -> String {
    format!("{CHECKSUM}{:08x}\n", crc32fast::hash(body.as_bytes()))
}

/// Returns what the checksum at the end is of, if it is right.
fn checked(text: &str) -> Result<&str, CacheError> {
    let cut = || refuse("it is cut off");
    let body = text.strip_suffix('\n').ok_or_else(cut)?;
    let (start, _) = body.rmatch_indices('\n').next().ok_or_else(cut)?;
    let (body, last) = text.split_at(start + 1);
    if !last.starts_with(CHECKSUM) {
        return Err(cut());
    }
    if last == checksum(body) { Ok(body) } else { Err(refuse("its checksum is wrong")) }
}

fn store(line: &str) -> StoreIdentity {
    let mut words = line.split(' ').map(str::to_owned);
    let id = words.next().filter(|id| id != NAMELESS);
    StoreIdentity::new(id, words.collect())
}

fn own(line: &str) -> Result<Lease, CacheError> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().ok_or_else(|| refuse("the own lease is not whole"));
    let (subnet, revision, term, record) = (word()?, word()?, word()?, word()?);
    let term = match term {
        "limited" => Term::Limited,
        "permanent" => Term::Permanent,
        _ => return Err(refuse("the own lease has no term")),
    };
    let revision = revision.parse().map_err(|_| refuse("the own lease has no revision"))?;
    lease(subnet, record, Revision(revision), term)
}

fn peer(line: &str) -> Result<Arc<Lease>, CacheError> {
    let words = line.strip_prefix("peer ").and_then(|line| line.split_once(' '));
    let (subnet, record) = words.ok_or_else(|| refuse("a line is not one of a peer"))?;
    lease(subnet, record, Revision::default(), Term::Limited).map(Arc::new)
}

fn lease(subnet: &str, record: &str, revision: Revision, term: Term) -> Result<Lease, CacheError> {
    let bad = |error: &dyn std::error::Error| refuse(&format!("the lease {subnet:?}: {error}"));
    let key = subnet.parse().map_err(|error| bad(&error))?;
    let attrs = LeaseAttrs::from_record(record).map_err(|error| bad(&error))?;
    Ok(Lease { subnet: key, attrs, revision, term })
}

fn refuse(why: &str) -> CacheError {
    CacheError(why.to_owned())
}

/// Puts JSON on one line: line ends occur between its tokens only (RFC 8259, section 7).
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
    fn what_is_remembered_is_what_was_known() {
        let peers = [
            ("10.5.2.0-24", r#"{"PublicIP":"192.168.0.2","BackendData":{"a b":"c"}}"#),
            ("10.5.3.0-24&fd00:1::-64", r#"{"PublicIP":"192.168.0.3","PublicIPv6":"fd00::3"}"#),
        ];
        let known = cache(&peers);
        let text = known.write(NETWORK);
        let read = Cache::read(text.as_bytes(), NETWORK).unwrap();
        assert_eq!((&read.store, &read.own, &read.peers), (&known.store, &known.own, &known.peers));
        let nameless = Cache { store: StoreIdentity::default(), ..known.clone() };
        assert_eq!(Cache::read(nameless.write(NETWORK).as_bytes(), NETWORK).unwrap().store.id, None);
        assert_eq!((read.config.ipv4, &read.config.backend), (known.config.ipv4, &known.config.backend));
        assert_eq!(read.write(NETWORK), text);
        assert_eq!(text.lines().count(), 8, "{text}");
    }

    #[test]
    fn the_memory_of_another_network_or_version_is_refused() {
        let text = cache(&[]).write("a\nb");
        assert!(Cache::read(text.as_bytes(), "a\nb").is_ok());
        let refused = |text: &str, network| Cache::read(text.as_bytes(), network).unwrap_err().to_string();
        assert_eq!(refused(&text, "a"), "it is about another network");
        assert_eq!(refused(&text.replace("cache 2", "cache 1"), "a\nb"), "it is of another version");
        assert_eq!(refused("", "a"), "it is of another version");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_though_the_checksum_is_right() {
        let text = cache(&[]).write(NETWORK);
        let body = checked(&text).unwrap();
        for (from, to, why) in [
            ("own ", "wrong ", r#"it has no line "own" where one should be"#),
            (" permanent ", " eternal ", "the own lease has no term"),
            (" 17 ", " -1 ", "the own lease has no revision"),
            ("10.5.0.0/16", "10.5.0.0/33", "invalid CIDR address: 10.5.0.0/33 (Network)"),
        ] {
            let text = sealed(&body.replace(from, to));
            assert_eq!(Cache::read(text.as_bytes(), NETWORK).unwrap_err().to_string(), why);
        }
        let text = sealed(&format!("{body}nonsense\n"));
        assert!(Cache::read(text.as_bytes(), NETWORK).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, body: String) {
            prop_assert!(Cache::read(&bytes, NETWORK).is_err());
            let _ = Cache::read(sealed(&format!("{VERSION}\n{body}\n")).as_bytes(), NETWORK);
            let head = format!("{VERSION}\nnetwork {NETWORK}\nstore -\nconfig {{\"Network\":\"10.5.0.0/16\"}}\n");
            let _ = Cache::read(sealed(&format!("{head}{body}\n")).as_bytes(), NETWORK);
            let _ = Cache::read(sealed(&format!("{head}own {body}\npeer {body}\n")).as_bytes(), NETWORK);
        }

        #[test]
        fn one_changed_or_missing_byte_is_noticed(at in 0_usize..300, to: u8) {
            let text = cache(&[("10.5.2.0-24", r#"{"PublicIP":"192.168.0.2"}"#)]).write(NETWORK).into_bytes();
            let at = at % text.len();
            let mut changed = text.clone();
            changed[at] = to;
            prop_assert!(changed == text || Cache::read(&changed, NETWORK).is_err());
            prop_assert!(Cache::read(&text[..at], NETWORK).is_err());
        }
    }
}
