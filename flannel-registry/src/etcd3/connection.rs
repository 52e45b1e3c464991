//! Connections to members: over TLS or not, with a token of a user or without.
//!
//! etcd forgets a token some minutes after its last use (`--auth-token-ttl`), when it restarts, and when rights change;
//! so a call that is refused for its token is made again with a new one, once. A member that serves without
//! authentication needs no token, whatever user is given.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, KvClient, LeaseClient, TlsOptions, WatchClient,
};
use tokio::sync::Mutex;
use tonic::{Code, Status};

use super::calls::{Call, Counters};
use super::cluster::{Failure, failure};
use super::{Etcd3Options, Etcd3OptionsError};
use crate::etcd::{FileError, Files, IncompleteKeyPair, Stamp};

/// A page of leases is about 1 MB, and a watch that catches up gets all it missed at once.
const LONGEST_MESSAGE: usize = 256 << 20;
/// etcd ends connections that ask more often than every 5 s (`--grpc-keepalive-min-time`).
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What connections are made with.
pub(super) struct Access {
    files: Files,
    /// Name and password.
    user: Option<(String, String)>,
    connect_timeout: Duration,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("files", &self.files).finish_non_exhaustive()
    }
}

/// One member's services.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) kv: KvClient,
    pub(super) lease: LeaseClient,
    pub(super) watch: WatchClient,
    client: Client,
    token: Arc<Token>,
}

/// Which token a connection has.
#[derive(Default)]
struct Token {
    /// Counts the tokens there were.
    number: AtomicU64,
    /// Held by who asks for the next one.
    renewal: Mutex<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Access {
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
        let files = Files::new(&options.ca_file, &options.cert_file, &options.key_file);
        let half = |IncompleteKeyPair { cert_file, key_file }| Etcd3OptionsError::IncompleteKeyPair {
            cert_file,
            key_file,
        };
        Ok(Self { files: files.map_err(half)?, user, connect_timeout: options.connect_timeout })
    }

    /// The state of the files that a connection to a member is made with.
    pub(super) fn stamp(&self, url: &str) -> Stamp {
        if is_tls(url) { self.files.stamp() } else { Stamp::default() }
    }

    /// Makes a connection that connects when it is first used, and gets a token for it if there is a user.
    pub(super) async fn connect(&self, url: &str, counters: &Counters) -> Result<Connection, Failure> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_keep_alive(KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT)
            // etcd ends connections that are asked without a call (`PermitWithoutStream` is off).
            .with_keep_alive_while_idle(false)
            // A member cut off from the others says so, instead of keeping a silent watch open.
            .with_require_leader(true);
        if is_tls(url) {
            let tls = self.tls().map_err(|error| {
                Failure::Refused(format!("{url}: {}", flannel_core::chain(&error)).into())
            })?;
            options = options.with_tls(tls);
        }
        let client =
            Client::connect([url], Some(options)).await.map_err(|error| self.failure(&error, url))?;
        let connection = Connection {
            kv: client.kv_client().max_decoding_message_size(LONGEST_MESSAGE),
            lease: client.lease_client(),
            watch: client.watch_client().max_decoding_message_size(LONGEST_MESSAGE),
            client,
            token: Arc::default(),
        };
        let first = connection.token();
        connection.renew_token(self, first, counters).await.map_err(|error| self.failure(&error, url))?;
        Ok(connection)
    }

    /// What the files say, as the client wants it.
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

    /// Tells what an error means, and which file may have to do with it.
    pub(super) fn failure(&self, error: &Error, url: &str) -> Failure {
        match failure(error, url) {
            Failure::Away(reason) if is_tls(url) => match self.files.hint(&reason.to_string()) {
                Some(hint) => Failure::Away(format!("{reason}; {hint}").into()),
                None => Failure::Away(reason),
            },
            other @ (Failure::Away(_) | Failure::NotNow(_) | Failure::Refused(_)) => other,
        }
    }

    /// Tells whether the same call may succeed with a new token. The errors are those of etcd
    /// (`api/v3rpc/rpctypes/error.go`).
    pub(super) fn wants_token(&self, error: &Error) -> bool {
        let Error::GRpcStatus(status) = error else { return false };
        let says = |words: &str| status.code() == Code::InvalidArgument && status.message().contains(words);
        // The token is unknown; or it is older than the last change of rights; or there is none, as authentication
        // was off when it was asked for.
        let refused = status.code() == Code::Unauthenticated
            || says("revision of auth store is old")
            || says("user name is empty");
        refused && self.user.is_some()
    }
}

impl Connection {
    /// The number of the token that calls are made with.
    pub(super) fn token(&self) -> u64 {
        self.token.number.load(Ordering::Acquire)
    }

    /// Gets a token after the one of this number, unless another call did.
    pub(super) async fn renew_token(
        &self,
        access: &Access,
        last: u64,
        counters: &Counters,
    ) -> Result<(), Error> {
        if access.user.is_none() {
            return Ok(());
        }
        let _renewal = self.token.renewal.lock().await;
        if self.token() != last {
            return Ok(());
        }
        counters.count(Call::Authenticate);
        match self.client.clone().update_user(access.user.clone()).await {
            Err(Error::GRpcStatus(status)) if serves_everybody(&status) => Ok(()),
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

/// Tells whether a member has no tokens to give because its authentication is off.
fn serves_everybody(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}
