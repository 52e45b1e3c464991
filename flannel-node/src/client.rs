//! Asks a daemon over its unix socket.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::status::AgentStatus;

/// How long a daemon may be silent. It answers within milliseconds; one that stands still shall not hold up who asks.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer is at most this long, in bytes: a peer takes some 300, and no network has a million.
const LONGEST: u64 = 512 << 20;

/// Why a daemon did not tell.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// None is there.
    #[error(
        "no flanneld runs here: nothing serves the socket {path}; one with another -subnet-file or -status-socket is \
         found by the same flag"
    )]
    NotRunning {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The user may not ask.
    #[error("the socket {path} is for root alone: run this as root")]
    Denied {
        /// Where it is.
        path: PathBuf,
    },
    /// It is there and does not answer.
    #[error("the flanneld behind the socket {path} does not answer: {reason}")]
    NoAnswer {
        /// Where it is.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
}

/// Asks for everything.
pub fn status(socket: &Path) -> Result<AgentStatus, ClientError> {
    read(socket, &fetch(socket, "/status")?)
}

/// Asks for everything but the peers one by one.
pub fn summary(socket: &Path) -> Result<AgentStatus, ClientError> {
    read(socket, &fetch(socket, "/summary")?)
}

fn read(socket: &Path, json: &[u8]) -> Result<AgentStatus, ClientError> {
    AgentStatus::read(json)
        .map_err(|error| no_answer(socket, format!("what it says cannot be read: {error}")))
}

/// Makes one request, and returns the body of the answer.
pub fn fetch(socket: &Path, path: &str) -> Result<Vec<u8>, ClientError> {
    let mut stream = UnixStream::connect(socket).map_err(|error| not_connected(socket, &error))?;
    let answer = exchange(&mut stream, path).map_err(|error| {
        let is_late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        let late = || format!("no word within {} seconds", PATIENCE.as_secs());
        no_answer(socket, if is_late { late() } else { error.to_string() })
    })?;
    let (head, body) =
        split(&answer).ok_or_else(|| no_answer(socket, "it does not speak HTTP".to_owned()))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_vec()),
        _ => Err(no_answer(socket, head.lines().next().unwrap_or_default().to_owned())),
    }
}

fn not_connected(socket: &Path, error: &io::Error) -> ClientError {
    let path = socket.to_owned();
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        ClientError::NotRunning { path }
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        ClientError::Denied { path }
    } else {
        no_answer(socket, error.to_string())
    }
}

fn exchange(stream: &mut UnixStream, path: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: flanneld\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Divides an answer into header and body, if the body is whole.
fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
    (length.parse() == Ok(body.len())).then_some((head, body))
}

fn no_answer(socket: &Path, reason: String) -> ClientError {
    ClientError::NoAnswer { path: socket.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_off_is_none() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(split(whole), Some(("HTTP/1.1 200 OK\r\nContent-Length: 2", &b"{}"[..])));
        for end in 0..whole.len() {
            assert_eq!(split(&whole[..end]), None, "{end}");
        }
        assert_eq!(split(b"SSH-2.0-x\r\n\r\n"), None);
    }

    #[test]
    fn where_no_daemon_runs_the_line_names_the_socket() {
        let path = std::env::temp_dir().join(format!("flanneld-nobody-{}.sock", std::process::id()));
        let line = fetch(&path, "/status").expect_err("nobody is there").to_string();
        assert!(line.contains("no flanneld runs here") && line.contains("nobody-"), "{line}");
    }
}
