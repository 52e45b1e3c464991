//! A minimal HTTP/1.1 server (RFC 9112): one request per connection.
//!
//! The time of an exchange, the size of a request and the number of connections are limited. When there are too many
//! connections, the oldest is closed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The largest request line and header, in bytes; those of browsers and probes have a tenth of it.
const MAX_HEAD: usize = 8 * 1024;

/// The time limit of an exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait, and how many bytes to discard, until the client closes the connection, so that it receives the whole
/// response although it sent more than was read (RFC 9112, section 9.6).
const LINGER: (Duration, u64) = (Duration::from_millis(500), 64 * 1024);

/// The maximum number of connections.
const MAX_CONNECTIONS: usize = 64;

/// The pause after a failure to accept a connection, such as a lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A request.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Request {
    /// Whether only the header of the response is requested.
    is_head: bool,
    /// The path, without the query.
    pub(super) path: String,
}

/// A response.
#[derive(Debug)]
pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Response {
    /// Creates a response with a text.
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body.into())
    }

    /// Creates a response.
    pub(super) fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type, body: body.into() }
    }

    fn head(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        )
    }
}

/// Responds to a request; `None` if its path doesn't exist.
pub(super) type Handler = Box<dyn Fn(&Request) -> Option<Response> + Send + Sync>;

/// Serves the connections that `accept` returns. Never returns itself.
pub(super) async fn serve<S, F>(mut accept: impl FnMut() -> F, handler: Handler) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let (mut connections, handler) = (Connections::default(), Arc::new(handler));
    loop {
        match accept().await {
            Ok(stream) => {
                let handler = Arc::clone(&handler);
                connections.add(tokio::spawn(async move {
                    // The client is gone if it fails.
                    let _ = timeout(EXCHANGE_TIMEOUT, exchange(stream, &handler)).await;
                }));
            }
            Err(error) => {
                tracing::debug!(%error, "failed to accept a connection");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// The open connections. Dropping it closes them.
#[derive(Default)]
struct Connections(VecDeque<JoinHandle<()>>);

impl Connections {
    fn add(&mut self, connection: JoinHandle<()>) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() == MAX_CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, handler: &Handler) -> io::Result<()> {
    let (is_head, response) = match read_head(&mut stream).await? {
        Head::Whole(head) => match read_request(&head) {
            Some(request) => {
                let response =
                    handler(&request).unwrap_or_else(|| Response::text(404, "404 page not found\n"));
                (request.is_head, response)
            }
            None => (false, Response::text(400, "400 Bad Request")),
        },
        Head::TooLong => (false, Response::text(431, "431 Request Header Fields Too Large")),
    };
    stream.write_all(response.head().as_bytes()).await?;
    if !is_head {
        stream.write_all(&response.body).await?;
    }
    stream.shutdown().await?;
    let mut rest = stream.take(LINGER.1);
    let _ = timeout(LINGER.0, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}

enum Head {
    Whole(Vec<u8>),
    TooLong,
}

/// Reads up to the empty line at the end of the header.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Head> {
    let mut head = Vec::with_capacity(512);
    loop {
        // The last read may have ended within a line break.
        let seen = head.len().saturating_sub(3);
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let new = &head[seen.min(head.len())..];
        if new.windows(4).any(|end| end == b"\r\n\r\n") || new.windows(2).any(|end| end == b"\n\n") {
            return Ok(Head::Whole(head));
        }
        if head.len() >= MAX_HEAD {
            return Ok(Head::TooLong);
        }
    }
}

/// Parses the request line.
fn read_request(head: &[u8]) -> Option<Request> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_token = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !is_token || words.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    // A proxy sends the absolute form.
    let path = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    path.starts_with('/').then(|| Request { is_head: method == "HEAD", path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_line_is_parsed() {
        let path = |head: &str| read_request(head.as_bytes()).map(|request| request.path);
        for (head, expected) in [
            ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Some("/healthz")),
            ("POST /readyz?verbose HTTP/1.0\r\n\r\n", Some("/readyz")),
            ("GET http://10.0.0.1:8090/metrics HTTP/1.1\r\n\r\n", Some("/metrics")),
            ("GET http://10.0.0.1:8090 HTTP/1.1\r\n\r\n", Some("/")),
            ("GET / HTTP/1.1\n\n", Some("/")),
            ("GET /healthz\r\n\r\n", None),
            ("GET /healthz HTTP/2\r\n\r\n", None),
            ("GET  /healthz HTTP/1.1\r\n\r\n", None),
            ("G\u{0}T / HTTP/1.1\r\n\r\n", None),
            (" / HTTP/1.1\r\n\r\n", None),
            ("GET healthz HTTP/1.1\r\n\r\n", None),
            ("\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(path(head).as_deref(), expected, "{head:?}");
        }
        assert_eq!(read_request(b"GET /\xff HTTP/1.1\r\n\r\n"), None);
    }

    /// Returns the response to a request that is sent in pieces.
    async fn response_to(pieces: &[&[u8]]) -> String {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let handler: Handler =
            Box::new(|request: &Request| (request.path == "/a").then(|| Response::text(200, "yes")));
        let serving = tokio::spawn(async move { exchange(far, &handler).await });
        for piece in pieces {
            near.write_all(piece).await.expect("read");
            tokio::task::yield_now().await;
        }
        let mut answer = String::new();
        timeout(EXCHANGE_TIMEOUT, near.read_to_string(&mut answer))
            .await
            .expect("in time")
            .expect("an answer");
        drop(near);
        serving.await.expect("no panic").expect("served");
        answer
    }

    #[tokio::test]
    async fn a_request_may_arrive_in_pieces() {
        let whole = response_to(&[b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"]).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n";
        assert_eq!(whole, format!("{head}Connection: close\r\n\r\nyes"));
        for cut in 1..27 {
            let (one, other) = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n".split_at(cut);
            assert_eq!(response_to(&[one, other]).await, whole, "{cut}");
        }
        assert!(response_to(&[b"HEAD /a HTTP/1.1\r\n\r\n"]).await.ends_with("\r\n\r\n"));
        assert!(response_to(&[b"GET /b HTTP/1.1\r\n\r\n"]).await.starts_with("HTTP/1.1 404 "));
        assert!(response_to(&[b"nonsense\r\n\r\n"]).await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn an_endless_header_is_refused() {
        let endless = vec![b'x'; MAX_HEAD + 1];
        assert!(response_to(&[&endless]).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn idle_connections_are_closed_in_favour_of_new_ones() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let handler: Handler = Box::new(|_: &Request| Some(Response::text(200, "yes")));
        let server = tokio::spawn(async move {
            let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
            serve(accept, handler).await
        });
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS * 3 {
            idle.push(tokio::net::TcpStream::connect(address).await.expect("connected"));
        }
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        timeout(EXCHANGE_TIMEOUT, stream.read_to_string(&mut answer))
            .await
            .expect("in time")
            .expect("an answer");
        assert!(answer.ends_with("yes"), "{answer}");
        let mut first = [0];
        let closed =
            timeout(EXCHANGE_TIMEOUT / 2, idle[0].read(&mut first)).await.expect("the oldest is closed");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        server.abort();
    }
}
