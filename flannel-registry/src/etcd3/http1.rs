//! Detection of servers without HTTP/2, which gRPC requires.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

/// The start of an HTTP/2 connection (RFC 9113, section 3.4), followed by empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const TIMEOUT: Duration = Duration::from_secs(1);

/// Reports whether a server answers the start of an HTTP/2 connection in HTTP/1. With TLS, the handshake decides that.
pub(super) async fn is_http1_only(url: &str) -> bool {
    let Some(address) = url.strip_prefix("http://") else { return false };
    timeout(TIMEOUT, answers_in_http1(address)).await.is_ok_and(|answer| answer.unwrap_or(false))
}

async fn answers_in_http1(address: &str) -> io::Result<bool> {
    let stream = TcpStream::connect(address).await?;
    let mut sent = 0;
    while sent < PREFACE.len() {
        stream.writable().await?;
        match stream.try_write(&PREFACE[sent..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => sent += written?,
        }
    }
    let mut start = [0; 7];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut start) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return Ok(read? == start.len() && start.starts_with(b"HTTP/1.")),
        }
    }
}
