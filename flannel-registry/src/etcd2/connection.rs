//! An HTTP/1.1 connection that makes progress only while its owner polls it, so dropping it stops all work.

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

/// 50,000 leases take about 20 MB.
const LONGEST_BODY: usize = 256 << 20;

/// A connection to one member.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// The future that reads and writes.
enum Driver {
    Running(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    /// Finished, with its error if there was one.
    Ended(Option<hyper::Error>),
}

/// The TLS config and server name of a member.
pub(super) struct TlsConfig {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

/// A byte stream, with or without TLS.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

impl Connection {
    /// Connects to `HOST:PORT`, with TLS if a config is given.
    pub(super) async fn open(address: &str, tls: Option<TlsConfig>) -> Result<Self, BoxError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let transport: Box<dyn Transport> = match tls {
            Some(tls) => Box::new(TlsConnector::from(tls.config).connect(tls.name, stream).await?),
            None => Box::new(stream),
        };
        let (sender, driver) = handshake(TokioIo::new(transport)).await?;
        Ok(Self { sender, driver: Driver::Running(Box::pin(driver)) })
    }

    /// Sends a request and waits for the response headers. The previous body must have been read.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, BoxError> {
        let sender = &mut self.sender;
        let response = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let response = self.driver.during(response).await;
        response.map_err(|error| self.driver.reason().unwrap_or_else(|| error.into()))
    }

    /// Reads a response body to its end.
    pub(super) async fn read(
        &mut self,
        body: impl Body<Data = Bytes, Error = hyper::Error>,
    ) -> Result<Bytes, BoxError> {
        let whole = self.driver.during(Limited::new(body, LONGEST_BODY).collect()).await;
        Ok(whole.map_err(|error| self.driver.reason().unwrap_or(error))?.to_bytes())
    }
}

impl Driver {
    /// Runs `work` while driving the connection.
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

    /// Returns the error that ended the connection. Its users see only that it is closed.
    fn reason(&mut self) -> Option<BoxError> {
        match self {
            Self::Running(_) => None,
            Self::Ended(reason) => reason.take().map(Into::into),
        }
    }
}
