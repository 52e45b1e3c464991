//! The members of an etcd cluster, and the choice of a member for each call.
//!
//! 1. A call goes to the member that answered last.
//! 2. If it does not answer in time, or refuses, the next member is asked, at most once round.
//! 3. Only if every member refuses does the cluster refuse. Otherwise it did not answer.
//!
//! Each member has one connection. It is made at the first call, and again after it failed, after the certificate files
//! changed, and after this host's addresses changed; the last also ends calls in progress.

use std::time::Duration;

use futures::Future;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::call_error::CallError;
use super::connection::{Connection, Credentials};
use super::options::{Etcd3Options, Etcd3OptionsError};
use super::request_counters::{CallKind, RequestCounters};
use crate::etcd::{ConnectionEpoch, ContactTracker, EndpointError, EndpointPicker, FileStamp, MemberErrors};

/// All members of a cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) endpoints: EndpointPicker,
    /// One per endpoint.
    connections: Vec<Mutex<Option<OpenConnection>>>,
    timeout: Duration,
    credentials: Credentials,
    pub(super) epoch: ConnectionEpoch,
    pub(super) contact: ContactTracker,
    pub(super) counters: RequestCounters,
}

/// A connection, with the state of the certificate files and the epoch in which it was made.
#[derive(Debug)]
struct OpenConnection {
    connection: Connection,
    stamp: FileStamp,
    epoch: u64,
}

/// A response, and the member that sent it.
pub(super) struct MemberResponse<T> {
    pub(super) value: T,
    pub(super) member: usize,
    /// Whether another member was asked before and did not answer, so that it may have applied a write.
    pub(super) retried: bool,
}

impl Cluster {
    /// Reads the options without connecting.
    pub(super) fn new(options: &Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        let endpoints = EndpointPicker::parse(&options.endpoints, |url| {
            let parsed = tonic::transport::Endpoint::from_shared(url.to_owned());
            parsed.map(|_| ()).map_err(|error| flannel_core::chain(&error))
        });
        let endpoints = endpoints
            .map_err(|EndpointError { endpoint, reason }| Etcd3OptionsError::Endpoint { endpoint, reason })?;
        if endpoints.urls().is_empty() {
            return Err(Etcd3OptionsError::NoEndpoint);
        }
        Ok(Self {
            connections: endpoints.urls().iter().map(|_| Mutex::new(None)).collect(),
            endpoints,
            timeout: options.timeout,
            credentials: Credentials::new(options)?,
            epoch: ConnectionEpoch::default(),
            contact: ContactTracker::default(),
            counters: RequestCounters::default(),
        })
    }

    /// Makes a call to the first member that answers.
    pub(super) async fn call<T, F>(
        &self,
        kind: CallKind,
        operation: impl Fn(Connection) -> F + Send,
    ) -> Result<MemberResponse<T>, CallError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let mut errors = MemberErrors::default();
        for member in self.endpoints.order() {
            self.counters.count(kind);
            match self.call_member(member, &operation).await {
                Ok(value) => {
                    self.contact.record();
                    return Ok(MemberResponse { value, member, retried: !errors.all_refused() });
                }
                // An error about the data, which is the same on all members.
                Err(error @ CallError::Transient(_)) => return Err(error),
                Err(CallError::Refused(reason)) => errors.refused(member, &reason),
                Err(CallError::NoAnswer(reason)) => errors.failed(member, &reason),
            }
            self.endpoints.skip(member);
        }
        Err(match errors.all_refused() {
            true => CallError::Refused(errors.into()),
            false => CallError::NoAnswer(errors.into()),
        })
    }

    /// Makes a call to one member.
    pub(super) async fn call_member<T, F>(
        &self,
        member: usize,
        operation: &(impl Fn(Connection) -> F + Send),
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let url = self.endpoints.url(member);
        let attempt = async {
            let connection = self.connection(member).await?;
            let token = connection.token();
            match operation(connection.clone()).await {
                Err(error) if self.credentials.needs_token(&error) => {
                    let renewed = connection.renew_token(&self.credentials, token, &self.counters).await;
                    renewed.map_err(|error| self.credentials.call_error(&error, url))?;
                    operation(connection).await
                }
                answer => answer,
            }
            .map_err(|error| self.credentials.call_error(&error, url))
        };
        let no_answer = |why: String| Err(CallError::NoAnswer(format!("{url}: {why}").into()));
        let epoch = self.epoch.current();
        tokio::select! {
            biased;
            answer = timeout(self.timeout, attempt) => {
                answer.unwrap_or_else(|_| no_answer(format!("no answer within {:?}", self.timeout)))
            }
            () = self.epoch.ended(epoch) => no_answer("the addresses of this host changed".to_owned()),
        }
    }

    /// Returns the connection to a member, made with the current files.
    ///
    /// While the files cannot be used, for example because they are being replaced, the previous connection stays.
    async fn connection(&self, member: usize) -> Result<Connection, CallError> {
        let url = self.endpoints.url(member);
        let (stamp, epoch) = (self.credentials.stamp(url), self.epoch.current());
        let mut open = self.connections[member].lock().await;
        let previous = match &*open {
            Some(open) if (&open.stamp, open.epoch) == (&stamp, epoch) => return Ok(open.connection.clone()),
            Some(open) if open.epoch == epoch => Some(open.connection.clone()),
            Some(_) | None => None,
        };
        match self.credentials.connect(url, &self.counters).await {
            Ok(connection) => {
                *open = Some(OpenConnection { connection: connection.clone(), stamp, epoch });
                Ok(connection)
            }
            Err(error) => previous.ok_or(error).inspect(|_| {
                tracing::warn!(
                    "cannot use the changed certificate files for etcd; keeping the previous connection"
                );
            }),
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
    fn endpoints_may_omit_the_scheme_and_have_spaces_around() {
        let cluster = cluster(&["127.0.0.1:2379", " http://[::1]:2379 ", "", "https://etcd:2379"]).unwrap();
        let expected = ["http://127.0.0.1:2379", "http://[::1]:2379", "https://etcd:2379"];
        assert_eq!(cluster.endpoints.urls(), expected);
    }

    #[test]
    fn invalid_endpoints_are_refused_without_showing_a_password() {
        for endpoints in
            [&[][..], &["", " "], &["ftp://etcd"], &["http://a b"], &["http://root:secret@etcd:2379"]]
        {
            let error = cluster(endpoints).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
