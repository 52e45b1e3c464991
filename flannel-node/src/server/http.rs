//! A small HTTP/1.1 server (RFC 9112) for a few short answers: one request for each connection, which is closed then.
//!
//! Whoever is slow costs a bounded time, a large request a bounded amount of memory, and many connections a bounded
//! number of them: when there are too many, the oldest goes. A request that is answered at once is never the oldest for
//! long.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// The longest request line and header that is read, in bytes; those of browsers and probes are a tenth of it.
const LONGEST_HEAD: usize = 8 * 1024;

/// How long a whole exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long, and for how many bytes, it is waited for the other side to close, so that it gets the whole answer though
/// it sent more than was read (RFC 9112, section 9.6).
const LINGER: (Duration, u64) = (Duration::from_millis(500), 64 * 1024);

/// So many connections are served at once.
const CONNECTIONS: usize = 64;

/// The pause after a connection could not be accepted, because file descriptors ran out.
const REST: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Request {
    /// Whether only the header of the answer is wanted.
    is_head: bool,
    /// The path, without what follows a question mark.
    pub(super) path: String,
}

/// What is answered.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Answer {
    /// Answers with text.
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Self::of(status, "text/plain; charset=utf-8", body.into())
    }

    /// Answers with anything.
    pub(super) fn of(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
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

/// Answers one request; nothing if there is nothing under its path.
pub(super) type Respond = dyn Fn(&Request) -> Option<Answer> + Send + Sync;

/// Serves the connections that `accept` gives, for ever.
pub(super) async fn serve<S, F>(mut accept: impl FnMut() -> F, respond: Arc<Respond>) -> Infallible
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let mut served = Served::default();
    loop {
        match accept().await {
            Ok(stream) => {
                let respond = Arc::clone(&respond);
                served.add(tokio::spawn(async move {
                    // Whoever went away needs no answer.
                    let _ = timeout(PATIENCE, exchange(stream, &*respond)).await;
                }));
            }
            Err(error) => {
                tracing::debug!(%error, "a connection cannot be accepted");
                sleep(REST).await;
            }
        }
    }
}

/// The connections that are served. They end with it.
#[derive(Default)]
struct Served(VecDeque<JoinHandle<()>>);

impl Served {
    fn add(&mut self, connection: JoinHandle<()>) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() == CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, respond: &Respond) -> io::Result<()> {
    let (is_head, answer) = match read_head(&mut stream).await? {
        Head::Whole(head) => match read_request(&head) {
            Some(request) => {
                let answer = respond(&request).unwrap_or_else(|| Answer::text(404, "404 page not found\n"));
                (request.is_head, answer)
            }
            None => (false, Answer::text(400, "400 Bad Request")),
        },
        Head::TooLong => (false, Answer::text(431, "431 Request Header Fields Too Large")),
    };
    stream.write_all(answer.head().as_bytes()).await?;
    if !is_head {
        stream.write_all(&answer.body).await?;
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

/// Reads up to the empty line that ends the header.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Head> {
    let mut head = Vec::with_capacity(512);
    loop {
        // The line before may have come without the rest of its end.
        let seen = head.len().saturating_sub(3);
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let new = &head[seen.min(head.len())..];
        if new.windows(4).any(|end| end == b"\r\n\r\n") || new.windows(2).any(|end| end == b"\n\n") {
            return Ok(Head::Whole(head));
        }
        if head.len() >= LONGEST_HEAD {
            return Ok(Head::TooLong);
        }
    }
}

/// Reads the first line of a request.
fn read_request(head: &[u8]) -> Option<Request> {
    let line = head.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?.trim_end_matches('\r');
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_token = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !is_token || words.next().is_some() || !version.starts_with("HTTP/1.") {
        return None;
    }
    // A proxy names the whole address.
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
    fn the_first_line_of_a_request_says_what_is_asked_for() {
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

    /// What a server answers to what is sent to it in pieces.
    async fn answered(pieces: &[&[u8]]) -> String {
        let (mut near, far) = tokio::io::duplex(64 * 1024);
        let respond: Arc<Respond> =
            Arc::new(|request: &Request| (request.path == "/a").then(|| Answer::text(200, "yes")));
        let serving = tokio::spawn(async move { exchange(far, &*respond).await });
        for piece in pieces {
            near.write_all(piece).await.expect("read");
            tokio::task::yield_now().await;
        }
        let mut answer = String::new();
        timeout(PATIENCE, near.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
        drop(near);
        serving.await.expect("no panic").expect("served");
        answer
    }

    #[tokio::test]
    async fn a_request_is_answered_however_it_is_cut() {
        let whole = answered(&[b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"]).await;
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 3\r\n";
        assert_eq!(whole, format!("{head}Connection: close\r\n\r\nyes"));
        for cut in 1..27 {
            let (one, other) = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n".split_at(cut);
            assert_eq!(answered(&[one, other]).await, whole, "{cut}");
        }
        assert!(answered(&[b"HEAD /a HTTP/1.1\r\n\r\n"]).await.ends_with("\r\n\r\n"));
        assert!(answered(&[b"GET /b HTTP/1.1\r\n\r\n"]).await.starts_with("HTTP/1.1 404 "));
        assert!(answered(&[b"nonsense\r\n\r\n"]).await.starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn a_header_without_end_is_refused() {
        let endless = vec![b'x'; LONGEST_HEAD + 1];
        assert!(answered(&[&endless]).await.starts_with("HTTP/1.1 431 "));
    }

    /// Connections that say nothing keep nobody else from being served.
    #[tokio::test]
    async fn silent_connections_make_room_for_others() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let respond: Arc<Respond> = Arc::new(|_: &Request| Some(Answer::text(200, "yes")));
        let server = tokio::spawn(async move {
            let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
            serve(accept, respond).await
        });
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS * 3 {
            silent.push(tokio::net::TcpStream::connect(address).await.expect("connected"));
        }
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
        assert!(answer.ends_with("yes"), "{answer}");
        let mut first = [0];
        let closed = timeout(PATIENCE / 2, silent[0].read(&mut first)).await.expect("the oldest was let go");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        server.abort();
    }
}
