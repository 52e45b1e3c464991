//! Checks the health of a server with a hand-written HTTP request.

use flannel_netlink::Namespace;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A loopback answer takes microseconds, an election up to a second.
const LIMIT: Duration = Duration::from_secs(2);

/// Succeeds if the server at `address` reports that it is healthy, which means that it can commit writes.
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
    // A health answer has some 200 bytes; another program at the port might send without end.
    stream.take(16 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
