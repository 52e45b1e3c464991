//! Connections to members, with optional TLS and authentication.
//!
//! etcd drops a token some minutes after its last use (`--auth-token-ttl`), when it restarts, and when permissions
//! change. A call that is refused because of its token is repeated once with a new token. A member without
//! authentication needs no token, even if a user is configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, KvClient, LeaseClient, TlsOptions, WatchClient,
};
use tokio::sync::Mutex;
use tonic::{Code, Status};

use super::call_error::{CallError, call_error};
use super::options::{Etcd3Options, Etcd3OptionsError};
use super::request_counters::{CallKind, RequestCounters};
use crate::etcd::{FileError, FileStamp, TlsFiles, UnpairedKey};

/// A page of leases is about 1 MB; a watch that resumes may receive everything it missed in one message.
const LONGEST_MESSAGE: usize = 256 << 20;
/// etcd closes connections that ping more often than every 5 s (`--grpc-keepalive-min-time`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Certificate files and user for connections.
pub(super) struct Credentials {
    files: TlsFiles,
    /// User name and password.
    user: Option<(String, String)>,
    connect_timeout: Duration,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The services of one member.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
    client: Client,
    token: Arc<Token>,
}

/// The authentication token of a connection.
#[derive(Default)]
struct Token {
    /// The number of tokens so far.
    number: AtomicU64,
    /// Held while a new token is requested.
    renewal: Mutex<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(options: &Etcd3Options) -> Result<Self, Etcd3OptionsError> {
        let user = match (options.username.as_str(), options.password.as_str()) {
            ("", "") => None,
            ("", _) => {
                return Err(Etcd3OptionsError::IncompleteCredentials("a password without a user name"));
            }
            (_, "") => {
                return Err(Etcd3OptionsError::IncompleteCredentials("a user name without a password"));
            }
            (name, password) => Some((name.to_owned(), password.to_owned())),
        };
        let files = TlsFiles::new(&options.ca_file, &options.cert_file, &options.key_file);
        let unpaired = |UnpairedKey { cert_file, key_file }| Etcd3OptionsError::IncompleteKeyPair {
            cert_file,
            key_file,
        };
        Ok(Self { files: files.map_err(unpaired)?, user, connect_timeout: options.connect_timeout })
    }

    /// Returns the state of the files that a connection to a member uses.
    pub(super) fn stamp(&self, url: &str) -> FileStamp {
        if is_tls(url) { self.files.stamp() } else { FileStamp::default() }
    }

    /// Creates a connection, which connects at first use, and requests a token if there is a user.
    pub(super) async fn connect(
        &self,
        url: &str,
        counters: &RequestCounters,
    ) -> Result<Connection, CallError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)
            // etcd closes idle connections that ping (`PermitWithoutStream` is off).
            .with_keep_alive_while_idle(false)
            // A member without a leader cancels the watch instead of keeping it open without events.
            .with_require_leader(true);
        if is_tls(url) {
            let tls = self.tls().map_err(|error| {
                CallError::Refused(format!("{url}: {}", flannel_core::chain(&error)).into())
            })?;
            options = options.with_tls(tls);
        }
        let client =
            Client::connect([url], Some(options)).await.map_err(|error| self.call_error(&error, url))?;
        let connection = Connection {
            kv: client.kv_client().max_decoding_message_size(LONGEST_MESSAGE),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LONGEST_MESSAGE),
            client,
            token: Arc::default(),
        };
        let first = connection.token();
        connection.renew_token(self, first, counters).await.map_err(|error| self.call_error(&error, url))?;
        Ok(connection)
    }

    /// Reads the files into the client's TLS options.
    fn tls(&self) -> Result<TlsOptions, FileError> {
        let files = self.files.read()?;
        let mut options = TlsOptions::new().timeout(self.connect_timeout);
        options = match files.authorities {
            Some(authorities) => options.ca_certificate(Certificate::from_pem(authorities.pem)),
            None => options.with_native_roots(),
        };
        Ok(match files.identity {
            Some(own) => options.identity(Identity::from_pem(own.certificate_pem, own.key_pem)),
            None => options,
        })
    }

    /// Classifies an error, and adds a hint at the certificate file that may have caused it.
    pub(super) fn call_error(&self, error: &Error, url: &str) -> CallError {
        match call_error(error, url) {
            CallError::NoAnswer(reason) if is_tls(url) => match self.files.hint(&reason.to_string()) {
                Some(hint) => CallError::NoAnswer(format!("{reason}; {hint}").into()),
                None => CallError::NoAnswer(reason),
            },
            other @ (CallError::NoAnswer(_) | CallError::Transient(_) | CallError::Refused(_)) => other,
        }
    }

    /// Reports whether the same call may succeed with a new token. The errors are those of etcd
    /// (`api/v3rpc/rpctypes/error.go`).
    pub(super) fn needs_token(&self, error: &Error) -> bool {
        let Error::GRpcStatus(status) = error else { return false };
        let is_invalid =
            |words: &str| status.code() == Code::InvalidArgument && status.message().contains(words);
        // The token is unknown, older than the last change of permissions, or missing because authentication was off
        // when it was requested.
        let refused = status.code() == Code::Unauthenticated
            || is_invalid("revision of auth store is old")
            || is_invalid("user name is empty");
        refused && self.user.is_some()
    }
}

impl Connection {
    /// Returns the number of the current token.
    pub(super) fn token(&self) -> u64 {
        self.token.number.load(Ordering::Acquire)
    }

    /// Replaces the token with this number, unless another call already did.
    pub(super) async fn renew_token(
        &self,
        credentials: &Credentials,
        last: u64,
        counters: &RequestCounters,
    ) -> Result<(), Error> {
        if credentials.user.is_none() {
            return Ok(());
        }
        let _renewal = self.token.renewal.lock().await;
        if self.token() != last {
            return Ok(());
        }
        counters.count(CallKind::Authenticate);
        match self.client.clone().update_user(credentials.user.clone()).await {
            Err(Error::GRpcStatus(status)) if authentication_is_off(&status) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                self.token.number.fetch_add(1, Ordering::Release);
                Ok(())
            }
        }
    }
}

fn is_tls(url: &str) -> bool {
    url.starts_with("https://")
}

/// Reports whether a member issues no tokens because its authentication is off.
fn authentication_is_off(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}
