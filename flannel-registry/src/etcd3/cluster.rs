//! The members of an etcd cluster, and how a call finds one that answers.
//!
//! 1. A call goes to the member that answered last.
//! 2. If that one does not answer in time, the next one is asked, once round.
//! 3. An answer ends the search, also if it is a refusal.
//!
//! Each member has a connection of its own, made at the first call and again by itself after it broke, when the
//! certificate files changed, or when this host has other addresses; the last also ends the calls that wait for an answer.

use std::error::Error;
use std::time::Duration;

use flannel_core::BoxError;
use futures::Future;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::calls::{Call, Counters};
use super::connection::{Access, Connection};
use super::{Etcd3Options, Etcd3OptionsError};
use crate::etcd::{Moves, Stamp, Turn, Word};

/// All members that may be asked.
#[derive(Debug)]
pub(super) struct Cluster {
    members: Vec<Member>,
    turn: Turn,
    timeout: Duration,
    access: Access,
    pub(super) moves: Moves,
    pub(super) word: Word,
    pub(super) counters: Counters,
}

#[derive(Debug)]
struct Member {
    url: String,
    connection: Mutex<Option<Made>>,
}

/// A connection, the state of the files it was made with, and how often this host had moved by then.
#[derive(Debug)]
struct Made {
    connection: Connection,
    stamp: Stamp,
    moves: u64,
}

/// What a member answered, and which one it was.
pub(super) struct Answer<T> {
    pub(super) value: T,
    pub(super) member: usize,
    /// How many members were asked before, each of which may have done what it was asked.
    pub(super) earlier: usize,
}

/// Why a call failed, by what it means for the caller.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answered; a write may have happened.
    Away(BoxError),
    /// Nothing was done, and the same call may succeed later.
    NotNow(BoxError),
    /// Nothing was done, and a person must act.
    Refused(BoxError),
}

impl Cluster {
    /// Reads the endpoints. Connects to none of them.
    pub(super) fn new(options: &Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        let members = options
            .endpoints
            .iter()
            .map(|endpoint| endpoint.trim())
            .filter(|endpoint| !endpoint.is_empty())
            .map(Member::new)
            .collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err(Etcd3OptionsError::NoEndpoint);
        }
        Ok(Self {
            turn: Turn::among(members.len()),
            members,
            timeout: options.timeout,
            access: Access::new(options)?,
            moves: Moves::default(),
            word: Word::default(),
            counters: Counters::default(),
        })
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

    /// Makes one call, on the first member that answers.
    pub(super) async fn call<T, F>(
        &self,
        call: Call,
        operation: impl Fn(Connection) -> F + Send,
    ) -> Result<Answer<T>, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut earlier = 0;
        loop {
            let member = self.turn.current();
            self.counters.count(call);
            match self.attempt(member, &operation).await {
                Ok(value) => {
                    self.word.heard();
                    return Ok(Answer { value, member, earlier });
                }
                Err(failure @ (Failure::NotNow(_) | Failure::Refused(_))) => return Err(failure),
                Err(Failure::Away(reason)) => {
                    self.leave(member);
                    earlier += 1;
                    if earlier == self.members.len() {
                        return Err(Failure::Away(reason));
                    }
                }
            }
        }
    }

    /// Says that a member does not answer, so that the next call asks another one first.
    pub(super) fn leave(&self, member: usize) {
        self.turn.leave(member);
    }

    async fn attempt<T, F>(
        &self,
        member: usize,
        operation: &(impl Fn(Connection) -> F + Send),
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let member = &self.members[member];
        let attempt = async {
            let connection = self.connection(member).await?;
            let token = connection.token();
            match operation(connection.clone()).await {
                Err(error) if self.access.wants_token(&error) => {
                    let renewed = connection.renew_token(&self.access, token, &self.counters).await;
                    renewed.map_err(|error| self.access.failure(&error, &member.url))?;
                    operation(connection).await
                }
                answer => answer,
            }
            .map_err(|error| self.access.failure(&error, &member.url))
        };
        let away = |why: String| Err(Failure::Away(format!("{}: {why}", member.url).into()));
        let moves = self.moves.count();
        tokio::select! {
            biased;
            answer = timeout(self.timeout, attempt) => {
                answer.unwrap_or_else(|_| away(format!("no answer within {:?}", self.timeout)))
            }
            () = self.moves.beyond(moves) => away("this host has other addresses now".to_owned()),
        }
    }

    /// A member's connection, made with the files as they are now.
    ///
    /// Files that cannot be used, because they are just being replaced, end no connection that was made before.
    async fn connection(&self, member: &Member) -> Result<Connection, Failure> {
        let (stamp, moves) = (self.access.stamp(&member.url), self.moves.count());
        let mut made = member.connection.lock().await;
        let before = match &*made {
            Some(made) if (&made.stamp, made.moves) == (&stamp, moves) => return Ok(made.connection.clone()),
            Some(made) if made.moves == moves => Some(made.connection.clone()),
            Some(_) | None => None,
        };
        match self.access.connect(&member.url, &self.counters).await {
            Ok(connection) => {
                *made = Some(Made { connection: connection.clone(), stamp, moves });
                Ok(connection)
            }
            Err(failure) => before.ok_or(failure).inspect(|_| {
                tracing::warn!("the certificates of etcd changed and cannot be used, the former are kept");
            }),
        }
    }
}

impl Member {
    fn new(endpoint: &str) -> Result<Self, Etcd3OptionsError> {
        let bad = |reason: &str| Etcd3OptionsError::Endpoint {
            // What stands before an @ is a password.
            endpoint: endpoint.rsplit('@').next().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        };
        let url = match endpoint.split_once("://") {
            Some(("http" | "https", _)) => endpoint.to_owned(),
            Some(_) => return Err(bad("want http://ADDRESS:PORT or https://ADDRESS:PORT")),
            None => format!("http://{endpoint}"),
        };
        if url.contains('@') {
            return Err(bad("user and password do not belong into an endpoint"));
        }
        tonic::transport::Endpoint::from_shared(url.clone())
            .map_err(|error| bad(&flannel_core::chain(&error)))?;
        Ok(Self { url, connection: Mutex::new(None) })
    }
}

/// Tells what an error means. The codes are those of gRPC, as etcd uses them (`api/v3rpc/rpctypes/error.go`).
pub(super) fn failure(error: &etcd_client::Error, url: &str) -> Failure {
    if let etcd_client::Error::GRpcStatus(status) = error {
        return status_failure(status, format!("{url}: {}", text(status)).into());
    }
    let reason = format!("{url}: {error}").into();
    if matches!(error, etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_)) {
        Failure::Refused(reason)
    } else {
        Failure::Away(reason)
    }
}

fn status_failure(status: &Status, reason: BoxError) -> Failure {
    match status.code() {
        Code::NotFound | Code::OutOfRange => Failure::NotNow(reason),
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => Failure::Refused(reason),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Failure::Away(reason),
    }
}

/// The message of a status with its causes, without the parts that only a program reads.
fn text(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

impl Failure {
    /// The cause alone.
    pub(super) fn into_reason(self) -> BoxError {
        match self {
            Self::Away(reason) | Self::NotNow(reason) | Self::Refused(reason) => reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(endpoints: &[&str]) -> Result<Cluster, Etcd3OptionsError> {
        Cluster::new(&Etcd3Options {
            endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            ..Etcd3Options::default()
        })
    }

    #[test]
    fn endpoints_need_no_scheme_and_may_have_spaces_around() {
        let cluster = cluster(&["127.0.0.1:2379", " http://[::1]:2379 ", "", "https://etcd:2379"]).unwrap();
        assert_eq!(cluster.describe(), "http://127.0.0.1:2379, http://[::1]:2379, https://etcd:2379");
    }

    #[test]
    fn endpoints_that_cannot_work_are_refused_without_telling_a_password() {
        for endpoints in
            [&[][..], &["", " "], &["ftp://etcd"], &["http://a b"], &["http://root:secret@etcd:2379"]]
        {
            let error = cluster(endpoints).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn only_an_answer_says_that_nothing_was_written() {
        let of = |code| failure(&Status::new(code, "etcd's words").into(), "http://a");
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Cancelled] {
            assert!(matches!(of(code), Failure::Away(_)), "{code:?}");
        }
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::ResourceExhausted] {
            assert!(matches!(of(code), Failure::Refused(_)), "{code:?}");
        }
        assert_eq!(of(Code::NotFound).into_reason().to_string(), "http://a: etcd's words");
    }
}
