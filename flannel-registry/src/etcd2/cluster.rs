//! The members of an etcd cluster, and how a request finds one that answers.
//!
//! 1. A request goes to the member that answered last.
//! 2. If that one does not answer in time, the next one is asked, once round. A write that was sent is not sent again:
//!    nobody could tell whether the first one had happened.
//! 3. An answer ends the search, also if it is a refusal.
//!
//! Each request has a connection of its own, except that a watch keeps its own as long as it is good.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flannel_core::{BoxError, chain};
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;

use super::answer::{EtcdError, Head};
use super::calls::{Call, Counters};
use super::connection::Connection;
use super::member::{Ask, Manner, Member, Trouble};
use super::tls::tls;
use super::{Etcd2Options, Etcd2OptionsError};
use crate::etcd::{Files, IncompleteKeyPair, Moves, Turn, Word};

/// All members that may be asked.
#[derive(Debug)]
pub(super) struct Cluster {
    members: Vec<Member>,
    turn: Turn,
    manner: Manner,
    pub(super) moves: Moves,
    pub(super) word: Word,
    pub(super) counters: Counters,
}

/// What a member answered.
pub(super) struct Answer {
    pub(super) head: Head,
    pub(super) body: Bytes,
    pub(super) member: usize,
}

/// A request that is answered when something happens.
pub(super) struct Poll {
    pub(super) head: Head,
    pub(super) line: Line,
    /// How often this host had moved when it was asked.
    pub(super) moves: u64,
    body: Incoming,
}

/// A connection that a watch keeps.
pub(super) struct Line {
    pub(super) member: usize,
    connection: Connection,
}

/// Why a call failed, by what it means for the caller.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody could be asked; nothing was done.
    NotSent(BoxError),
    /// Nobody answered; a write may have happened.
    Away(BoxError),
    /// Nothing was done, and a person must act.
    Refused(BoxError),
    /// Nothing was done, for the reason that etcd gives; the address is that of the member.
    Said(EtcdError, String),
}

impl Cluster {
    /// Reads the options. Connects to nobody.
    pub(super) fn new(options: &Etcd2Options) -> Result<Self, Etcd2OptionsError> {
        let endpoints = options.endpoints.iter().map(|endpoint| endpoint.trim());
        let members = endpoints.filter(|endpoint| !endpoint.is_empty()).map(|endpoint| {
            Member::new(endpoint).map_err(|reason| Etcd2OptionsError::Endpoint {
                // What stands before an @ is a password.
                endpoint: endpoint.rsplit('@').next().unwrap_or_default().to_owned(),
                reason,
            })
        });
        let members = members.collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err(Etcd2OptionsError::NoEndpoint);
        }
        let files = Files::new(&options.ca_file, &options.cert_file, &options.key_file);
        let half = |IncompleteKeyPair { cert_file, key_file }| Etcd2OptionsError::IncompleteKeyPair {
            cert_file,
            key_file,
        };
        let files = files.map_err(half)?;
        if members.iter().any(|member| member.url.starts_with("https:")) {
            tls(&files, "localhost").map_err(|error| Etcd2OptionsError::Tls(chain(error.as_ref())))?;
        }
        let manner = Manner {
            timeout: options.timeout,
            connect_timeout: options.connect_timeout,
            authorization: options.user.as_deref().map(|user| basic(user, &options.password)),
            files,
        };
        let (moves, word, counters) = (Moves::default(), Word::default(), Counters::default());
        Ok(Self { turn: Turn::among(members.len()), members, manner, moves, word, counters })
    }

    /// The members' addresses, for people.
    pub(super) fn describe(&self) -> String {
        let urls: Vec<&str> = self.members.iter().map(|member| member.url.as_str()).collect();
        urls.join(", ")
    }

    /// The members' addresses.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.url.clone()).collect()
    }

    /// A member's address.
    pub(super) fn url(&self, member: usize) -> &str {
        self.members.get(member).map_or("", |member| &member.url)
    }

    /// Says that a member does not answer, so that the next call asks another one first.
    pub(super) fn leave(&self, member: usize) {
        self.turn.leave(member);
    }

    /// The member that is asked first.
    pub(super) fn current(&self) -> usize {
        self.turn.current()
    }

    /// Makes one call, on the first member that answers.
    pub(super) async fn call(&self, ask: &Ask) -> Result<Answer, Failure> {
        let mut asked = 0;
        loop {
            let (index, member) = self.next(ask);
            match member.call(ask, &self.manner).await {
                Ok((head, body)) => {
                    self.word.heard();
                    return Ok(Answer { head, body, member: index });
                }
                Err(trouble) => self.pass(ask, index, trouble, &mut asked)?,
            }
        }
    }

    /// Begins a poll: over the line that is given, if it is still good, or else on the first member that answers.
    pub(super) async fn poll(&self, ask: &Ask, line: Option<Line>) -> Result<Poll, Failure> {
        if let Some(line) = line {
            self.counters.count(ask.call);
            match self.poll_over(ask, line).await {
                // A server may close a connection at any time.
                Err(Trouble::NotSent(_) | Trouble::Away(_)) => {}
                Err(Trouble::Lacks(reason) | Trouble::Refused(reason)) => {
                    return Err(Failure::Refused(reason));
                }
                Err(Trouble::Said(error, url)) => return Err(Failure::Said(error, url)),
                Ok(poll) => return Ok(poll),
            }
        }
        let mut asked = 0;
        loop {
            let (index, member) = self.next(ask);
            let begun = match member.connect(&self.manner).await {
                Ok(connection) => self.poll_over(ask, Line { member: index, connection }).await,
                Err(trouble) => Err(trouble),
            };
            match begun {
                Ok(poll) => return Ok(poll),
                Err(trouble) => self.pass(ask, index, trouble, &mut asked)?,
            }
        }
    }

    async fn poll_over(&self, ask: &Ask, mut line: Line) -> Result<Poll, Trouble> {
        let (member, moves) = (&self.members[line.member], self.moves.count());
        let (head, body) = member.begin(&mut line.connection, ask, &self.manner).await?;
        Ok(Poll { head, line, moves, body })
    }

    /// The member whose turn it is; it is counted as asked.
    fn next(&self, ask: &Ask) -> (usize, &Member) {
        self.counters.count(ask.call);
        let index = self.turn.current();
        (index, &self.members[index])
    }

    /// Passes on to the next member after one could not help, unless that would be wrong or all were asked.
    fn pass(&self, ask: &Ask, index: usize, trouble: Trouble, asked: &mut usize) -> Result<(), Failure> {
        let failure = match trouble {
            Trouble::Said(error, url) => return Err(Failure::Said(error, url)),
            Trouble::Refused(reason) => return Err(Failure::Refused(reason)),
            Trouble::NotSent(reason) => Failure::NotSent(reason),
            Trouble::Away(reason) => Failure::Away(reason),
            Trouble::Lacks(reason) => Failure::Refused(reason),
        };
        self.turn.leave(index);
        *asked += 1;
        let may_have_written = ask.call == Call::Write && matches!(failure, Failure::Away(_));
        if may_have_written || *asked == self.members.len() { Err(failure) } else { Ok(()) }
    }
}

impl Poll {
    /// Waits for the answer. An empty one says that nothing happened up to the index in the head.
    pub(super) async fn answer(&mut self) -> Result<Bytes, BoxError> {
        // Dropping a body that was not read to its end closes the connection, so nobody meets what is left of it.
        let body = &mut self.body;
        self.line.connection.read(body).await
    }
}

impl Failure {
    /// The cause alone.
    pub(super) fn into_reason(self) -> BoxError {
        match self {
            Self::NotSent(reason) | Self::Away(reason) | Self::Refused(reason) => reason,
            Self::Said(error, url) => format!("{url}: {error}").into(),
        }
    }
}

/// The header by which a user is known (RFC 7617).
fn basic(user: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    // The alphabet of base64 is allowed in headers.
    let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}
