//! A client for the status socket of an agent.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::status::AgentStatus;

/// How long to wait for a response. An agent responds within milliseconds unless it hangs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of a response, in bytes: a peer takes about 300.
const MAX_RESPONSE: u64 = 512 << 20;

/// Why an agent's status could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No agent runs.
    #[error("nothing serves the socket {path}")]
    NotRunning {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The user may not connect.
    #[error("permission denied for the socket {path}; run this as root")]
    Denied {
        /// The path of the socket.
        path: PathBuf,
    },
    /// The agent does not respond.
    #[error("the process that serves the socket {path} does not respond: {reason}")]
    NoResponse {
        /// The path of the socket.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
}

/// Reads the status with every peer.
///
/// # Errors
///
/// [`ClientError`].
pub fn status(socket: &Path) -> Result<AgentStatus, ClientError> {
    parse(socket, &fetch(socket, "/status")?)
}

/// Reads the status without the single peers.
///
/// # Errors
///
/// [`ClientError`].
pub fn summary(socket: &Path) -> Result<AgentStatus, ClientError> {
    parse(socket, &fetch(socket, "/summary")?)
}

fn parse(socket: &Path, json: &[u8]) -> Result<AgentStatus, ClientError> {
    AgentStatus::read(json).map_err(|error| no_response(socket, format!("invalid status: {error}")))
}

/// Requests a path, such as `/metrics`, and returns the body of the response.
///
/// # Errors
///
/// [`ClientError`].
pub fn fetch(socket: &Path, path: &str) -> Result<Vec<u8>, ClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| not_connected(socket, &error))?;
    let response = exchange(&mut stream, path).map_err(|error| {
        let is_timeout = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let timeout = || format!("timeout after {} seconds", RESPONSE_TIMEOUT.as_secs());
        no_response(socket, if is_timeout { timeout() } else { error.to_string() })
    })?;
    let (head, body) =
        split(&response).ok_or_else(|| no_response(socket, "not an HTTP response".to_owned()))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_vec()),
        _ => Err(no_response(socket, head.lines().next().unwrap_or_default().to_owned())),
    }
}

fn not_connected(socket: &Path, error: &io::Error) -> ClientError {
    let path = socket.to_owned();
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        ClientError::NotRunning { path }
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        ClientError::Denied { path }
    } else {
        no_response(socket, error.to_string())
    }
}

fn exchange(stream: &mut UnixStream, path: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
    stream.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: flannel\r\nConnection: close\r\n\r\n")?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
    Ok(response)
}

/// Splits a response into header and body; `None` if the body is incomplete.
fn split(response: &[u8]) -> Option<(&str, &[u8])> {
    let end = response.windows(4).position(|end| end == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&response[..end]).ok()?, &response[end + 4..]);
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
    (length.parse() == Ok(body.len())).then_some((head, body))
}

fn no_response(socket: &Path, reason: String) -> ClientError {
    ClientError::NoResponse { path: socket.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_response_is_rejected() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(split(whole), Some(("HTTP/1.1 200 OK\r\nContent-Length: 2", &b"{}"[..])));
        for end in 0..whole.len() {
            assert_eq!(split(&whole[..end]), None, "{end}");
        }
        assert_eq!(split(b"SSH-2.0-x\r\n\r\n"), None);
    }

    #[test]
    fn the_error_names_a_socket_that_nothing_serves() {
        let path = std::env::temp_dir().join(format!("flanneld-nobody-{}.sock", std::process::id()));
        let line = fetch(&path, "/status").expect_err("no server").to_string();
        assert!(line.starts_with("nothing serves the socket ") && line.contains("nobody-"), "{line}");
    }
}
