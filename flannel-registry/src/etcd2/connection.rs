//! One HTTP/1.1 connection, which moves only while its owner waits for it: nothing is left running when it is dropped.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use flannel_core::BoxError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// 50,000 leases are some 20 MB.
const LONGEST_BODY: usize = 256 << 20;

/// A connection to one member.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// What reads and writes.
enum Driver {
    Running(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    /// It ended, for this reason if it knows one.
    Ended(Option<hyper::Error>),
}

/// What TLS needs to know about a member.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

/// A wire, with TLS or without.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

impl Connection {
    /// Connects to `HOST:PORT`, with TLS if it is given.
    pub(super) async fn open(address: &str, tls: Option<Tls>) -> Result<Self, BoxError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let wire: Box<dyn Wire> = match tls {
            Some(tls) => Box::new(TlsConnector::from(tls.config).connect(tls.name, stream).await?),
            None => Box::new(stream),
        };
        let (sender, driver) = handshake(TokioIo::new(wire)).await?;
        Ok(Self { sender, driver: Driver::Running(Box::pin(driver)) })
    }

    /// Sends a request and waits for the head of its answer. The body of the answer before must have been read.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, BoxError> {
        let sender = &mut self.sender;
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let answer = self.driver.during(answer).await;
        answer.map_err(|error| self.driver.reason().unwrap_or_else(|| error.into()))
    }

    /// Reads the body of an answer to its end.
    pub(super) async fn read(
        &mut self,
        body: impl Body<Data = Bytes, Error = hyper::Error>,
    ) -> Result<Bytes, BoxError> {
        let whole = self.driver.during(Limited::new(body, LONGEST_BODY).collect()).await;
        Ok(whole.map_err(|error| self.driver.reason().unwrap_or(error))?.to_bytes())
    }
}

impl Driver {
    /// Waits for `work` while the connection moves.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Self::Running(driver) = self
                && let Poll::Ready(ended) = driver.as_mut().poll(context)
            {
                *self = Self::Ended(ended.err());
            }
            work.as_mut().poll(context)
        })
        .await
    }

    /// Why it ended. Whoever waits is told only that it did.
    fn reason(&mut self) -> Option<BoxError> {
        match self {
            Self::Running(_) => None,
            Self::Ended(reason) => reason.take().map(Into::into),
        }
    }
}
