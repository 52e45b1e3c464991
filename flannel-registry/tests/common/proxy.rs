//! A wire to etcd that can lose the answers and deliver the requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

/// How long every answer takes: long enough to become deaf before it comes.
const DELAY: Duration = Duration::from_millis(150);

pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    listener: AbortHandle,
}

#[derive(Default)]
struct State {
    deaf: AtomicBool,
    connections: AtomicUsize,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(carry(client, server, Arc::clone(&shared)));
            }
        });
        Self { address, state, listener: task.abort_handle() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Loses all answers from now on.
    pub(crate) fn become_deaf(&self) {
        self.state.deaf.store(true, Ordering::SeqCst);
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn carry(client: TcpStream, server: SocketAddr, state: Arc<State>) {
    let server = TcpStream::connect(server).await.unwrap();
    let (mut requests, mut to_client) = client.into_split();
    let (mut answers, mut to_server) = server.into_split();
    let forth = copy(&mut requests, &mut to_server);
    let back = async {
        let mut buf = vec![0; 64 * 1024];
        loop {
            let n = answers.read(&mut buf).await?;
            sleep(DELAY).await;
            if n == 0 {
                return Ok::<_, std::io::Error>(());
            }
            if !state.deaf.load(Ordering::SeqCst) {
                to_client.write_all(&buf[..n]).await?;
            }
        }
    };
    // Whichever side ends ends both.
    tokio::select! {
        _ = forth => {}
        _ = back => {}
    }
}
