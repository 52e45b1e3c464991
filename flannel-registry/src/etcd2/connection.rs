//! One HTTP/1.1 connection, which moves only while its owner waits for it: nothing is left running when it is dropped.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;

use flannel_core::BoxError;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// 50,000 leases are some 20 MB.
const LONGEST_BODY: usize = 256 << 20;

/// A connection to one member.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// What reads and writes; `None` after it ended.
    driver: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
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
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    /// Sends a request and waits for the head of its answer. The body of the answer before must have been read.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let Self { sender, driver } = self;
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        driving(driver, answer).await
    }

    /// Reads the body of an answer to its end.
    pub(super) async fn read(
        &mut self,
        body: impl Body<Data = Bytes, Error = hyper::Error>,
    ) -> Result<Bytes, BoxError> {
        let whole = Limited::new(body, LONGEST_BODY).collect();
        Ok(driving(&mut self.driver, whole).await?.to_bytes())
    }
}

/// Waits for `work` while the connection moves.
async fn driving<D, T>(driver: &mut Option<Pin<Box<D>>>, work: impl Future<Output = T>) -> T
where
    D: Future + Send + ?Sized,
{
    let mut work = pin!(work);
    poll_fn(|context| {
        // How the connection ended is known to whoever waits for it.
        if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(context).is_ready()) {
            *driver = None;
        }
        work.as_mut().poll(context)
    })
    .await
}
