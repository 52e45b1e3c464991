//! Asks a server for its health, over HTTP by hand: one request needs no client library.

use flannel_netlink::Namespace;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A loopback answer takes microseconds, an election up to a second.
const LIMIT: Duration = Duration::from_secs(2);

/// Succeeds when the server at `address` says that it is healthy, which it is once it can commit a write.
pub(super) fn check(namespace: &Namespace, address: SocketAddr) -> io::Result<()> {
    let answer = namespace.run(|| ask(address))??;
    if answer.starts_with("HTTP/1.1 200") && answer.contains("\"health\":\"true\"") {
        return Ok(());
    }
    Err(io::Error::other(format!("answer to GET /health: {answer:?}")))
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(
        format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    // A health answer has some 200 bytes; whoever else listens there may send without end.
    stream.take(16 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
