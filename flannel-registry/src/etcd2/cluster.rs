//! The members of an etcd cluster, and the choice of a member for each request.
//!
//! 1. A request goes to the member that answered last.
//! 2. If it does not answer in time, or refuses, the next member is asked, at most once round. A write that was sent is
//!    not sent again without an answer, because it may have been applied.
//! 3. Only if every member refuses does the cluster refuse. An error about the data ends the search.
//!
//! Each request has its own connection, except that a watch keeps a connection for its long polls.

use std::mem;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flannel_core::{BoxError, chain};
use hyper::body::Bytes;
use hyper::header::HeaderValue;

use super::connection::Connection;
use super::member::{ApiRequest, Member, MemberError, RequestOptions};
use super::options::{Etcd2Options, Etcd2OptionsError};
use super::poll_reply::PollReply;
use super::request_counters::{CallKind, RequestCounters};
use super::response::{EtcdError, StoreHeaders};
use super::tls::tls_config;
use crate::etcd::{
    ConnectionEpoch, ContactTracker, EndpointError, EndpointPicker, MemberErrors, TlsFiles, UnpairedKey,
};

/// All members of a cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) endpoints: EndpointPicker,
    /// One per endpoint.
    members: Vec<Member>,
    options: RequestOptions,
    pub(super) epoch: ConnectionEpoch,
    pub(super) contact: ContactTracker,
    pub(super) counters: RequestCounters,
}

/// The response of a member.
pub(super) struct MemberResponse {
    pub(super) headers: StoreHeaders,
    pub(super) body: Bytes,
    pub(super) member: usize,
}

/// A request that is answered at the next event.
pub(super) struct LongPoll {
    /// The headers; empty while they are pending.
    pub(super) headers: StoreHeaders,
    pub(super) member: usize,
    /// The connection epoch in which the request was sent.
    pub(super) epoch: u64,
    reply: PollReply,
}

/// A connection that a watch keeps for its long polls.
pub(super) struct PollConnection {
    pub(super) member: usize,
    connection: Connection,
}

/// Why a call failed, by its consequence for the caller.
#[derive(Debug)]
pub(super) enum CallError {
    /// No member could be reached; nothing was applied.
    NotSent(BoxError),
    /// No member answered; a write may have been applied.
    NoAnswer(BoxError),
    /// Nothing was applied, and an operator must act.
    Refused(BoxError),
    /// Nothing was applied: an error of etcd, and the URL of the member.
    Etcd(EtcdError, String),
}

impl Cluster {
    /// Reads the options without connecting.
    pub(super) fn new(options: &Etcd2Options) -> Result<Self, Etcd2OptionsError> {
        let mut members = Vec::new();
        let endpoints = EndpointPicker::parse(&options.endpoints, |url| {
            members.push(Member::new(url)?);
            Ok(())
        });
        let endpoints = endpoints
            .map_err(|EndpointError { endpoint, reason }| Etcd2OptionsError::Endpoint { endpoint, reason })?;
        if members.is_empty() {
            return Err(Etcd2OptionsError::NoEndpoint);
        }
        let files = TlsFiles::new(&options.ca_file, &options.cert_file, &options.key_file);
        let unpaired = |UnpairedKey { cert_file, key_file }| Etcd2OptionsError::IncompleteKeyPair {
            cert_file,
            key_file,
        };
        let files = files.map_err(unpaired)?;
        if members.iter().any(|member| member.url.starts_with("https:")) {
            tls_config(&files, "localhost").map_err(|error| Etcd2OptionsError::Tls(chain(error.as_ref())))?;
        }
        Ok(Self {
            endpoints,
            members,
            options: RequestOptions {
                timeout: options.timeout,
                connect_timeout: options.connect_timeout,
                authorization: options.user.as_deref().map(|user| basic(user, &options.password)),
                files,
            },
            epoch: ConnectionEpoch::default(),
            contact: ContactTracker::default(),
            counters: RequestCounters::default(),
        })
    }

    /// Sends a request to the first member that answers.
    pub(super) async fn call(&self, request: &ApiRequest) -> Result<MemberResponse, CallError> {
        let mut errors = MemberErrors::default();
        for member in self.endpoints.order() {
            self.counters.count(request.kind);
            match self.members[member].call(request, &self.options).await {
                Ok((headers, body)) => {
                    self.contact.record();
                    return Ok(MemberResponse { headers, body, member });
                }
                Err(error) => self.try_next(request, member, error, &mut errors)?,
            }
        }
        Err(all_failed(errors))
    }

    /// Starts a long poll on the given connection if it still works, or else on the first member that answers.
    pub(super) async fn poll(
        &self,
        request: &ApiRequest,
        connection: Option<PollConnection>,
    ) -> Result<LongPoll, CallError> {
        if let Some(connection) = connection {
            let last = connection.member;
            self.counters.count(request.kind);
            match self.poll_on(request, connection).await {
                // A server may close a connection at any time.
                Err(MemberError::NotSent(_) | MemberError::NoAnswer(_)) => {}
                Err(MemberError::Refused(_)) => self.endpoints.skip(last),
                Err(MemberError::Etcd(error, url)) => return Err(CallError::Etcd(error, url)),
                Ok(poll) => return Ok(poll),
            }
        }
        let mut errors = MemberErrors::default();
        for member in self.endpoints.order() {
            self.counters.count(request.kind);
            let started = match self.members[member].connect(&self.options).await {
                Ok(connection) => self.poll_on(request, PollConnection { member, connection }).await,
                Err(error) => Err(error),
            };
            match started {
                Ok(poll) => return Ok(poll),
                Err(error) => self.try_next(request, member, error, &mut errors)?,
            }
        }
        Err(all_failed(errors))
    }

    async fn poll_on(
        &self,
        request: &ApiRequest,
        connection: PollConnection,
    ) -> Result<LongPoll, MemberError> {
        let PollConnection { member, connection } = connection;
        let epoch = self.epoch.current();
        let (headers, reply) = self.members[member].start_poll(connection, request, &self.options).await?;
        Ok(LongPoll { headers, member, epoch, reply })
    }

    /// Moves on to the next member, unless the error is about the data or a write may have been applied.
    fn try_next(
        &self,
        request: &ApiRequest,
        member: usize,
        error: MemberError,
        errors: &mut MemberErrors,
    ) -> Result<(), CallError> {
        match error {
            MemberError::Etcd(error, url) => return Err(CallError::Etcd(error, url)),
            MemberError::Refused(reason) => errors.refused(member, &reason),
            MemberError::NotSent(reason) => errors.failed(member, &reason),
            MemberError::NoAnswer(reason) => {
                errors.failed(member, &reason);
                if request.kind == CallKind::Write {
                    self.endpoints.skip(member);
                    return Err(CallError::NoAnswer(mem::take(errors).into()));
                }
            }
        }
        self.endpoints.skip(member);
        Ok(())
    }
}

/// Returns the error of a call that no member answered; none of them applied a write.
fn all_failed(errors: MemberErrors) -> CallError {
    if errors.all_refused() { CallError::Refused(errors.into()) } else { CallError::NotSent(errors.into()) }
}

impl LongPoll {
    /// Reports whether the headers have not arrived yet.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.reply, PollReply::Pending(_))
    }

    /// Waits for the body. An empty body means that nothing happened up to the index in the headers.
    pub(super) async fn body(&mut self) -> Result<Bytes, BoxError> {
        if let PollReply::Pending(reply) = &mut self.reply {
            let (connection, response) = reply.await;
            self.reply = PollReply::Failed;
            let response = response?;
            if !response.status().is_success() {
                return Err(format!("HTTP status {}", response.status()).into());
            }
            self.headers = StoreHeaders::read(response.headers());
            self.reply = PollReply::Body(connection, response.into_body());
        }
        // Dropping an unread body closes the connection, so the next request cannot receive the rest of it.
        let PollReply::Body(connection, body) = &mut self.reply else {
            return Err("the long poll was answered".into());
        };
        let bytes = connection.read(body).await?;
        if let PollReply::Body(connection, _) = mem::replace(&mut self.reply, PollReply::Failed) {
            self.reply = PollReply::Read(connection);
        }
        Ok(bytes)
    }

    /// Returns the connection for the next poll, if the body was read.
    pub(super) fn into_connection(self) -> Option<PollConnection> {
        match self.reply {
            PollReply::Read(connection) => Some(PollConnection { member: self.member, connection }),
            PollReply::Body(..) | PollReply::Pending(_) | PollReply::Failed => None,
        }
    }
}

impl CallError {
    /// Returns the cause alone.
    pub(super) fn into_reason(self) -> BoxError {
        match self {
            Self::NotSent(reason) | Self::NoAnswer(reason) | Self::Refused(reason) => reason,
            Self::Etcd(error, url) => format!("{url}: {error}").into(),
        }
    }
}

/// Returns the `Authorization` header of a user (RFC 7617).
fn basic(user: &str, password: &str) -> HeaderValue {
    let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    // Headers allow the base64 alphabet.
    let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}
