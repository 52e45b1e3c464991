//! A TCP proxy that simulates network failures and, for gRPC, members that withhold events.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::frames::{Streams, WatchFault};

/// The initial delay of responses, long enough to start dropping them before they arrive.
const DELAY: Duration = Duration::from_millis(150);

pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    listener: AbortHandle,
}

struct State {
    server: Mutex<SocketAddr>,
    watch_fault: Mutex<WatchFault>,
    drops_answers: AtomicBool,
    connections: AtomicUsize,
    /// The delay of responses, in milliseconds.
    delay: AtomicU64,
    frozen: watch::Sender<bool>,
    resets: watch::Sender<usize>,
}

impl Proxy {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            server: Mutex::new(server),
            watch_fault: Mutex::new(WatchFault::None),
            drops_answers: AtomicBool::default(),
            connections: AtomicUsize::default(),
            delay: AtomicU64::new(0),
            frozen: watch::Sender::new(false),
            resets: watch::Sender::new(0),
        });
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(carry(client, Arc::clone(&shared)));
            }
        });
        let proxy = Self { address, state, listener: task.abort_handle() };
        proxy.delay(DELAY);
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Switches to another server, and resets all connections.
    pub(crate) fn switch_to(&self, server: SocketAddr) {
        *self.state.server.lock().unwrap() = server;
        self.reset();
    }

    /// Sets the treatment of watch messages.
    pub(crate) fn set_watch_fault(&self, watch_fault: WatchFault) {
        *self.state.watch_fault.lock().unwrap() = watch_fault;
    }

    /// Drops all responses from now on.
    pub(crate) fn drop_responses(&self) {
        self.state.drops_answers.store(true, Ordering::SeqCst);
    }

    /// Sets the delay of responses.
    pub(crate) fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap();
        self.state.delay.store(delay, Ordering::SeqCst);
    }

    /// Stops forwarding in both directions without closing connections.
    pub(crate) fn freeze(&self) {
        self.state.frozen.send_replace(true);
    }

    /// Resumes forwarding, including data received meanwhile.
    pub(crate) fn thaw(&self) {
        self.state.frozen.send_replace(false);
    }

    /// Resets all connections.
    pub(crate) fn reset(&self) {
        self.state.resets.send_modify(|resets| *resets += 1);
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

async fn carry(client: TcpStream, state: Arc<State>) {
    let mut resets = state.resets.subscribe();
    let address = *state.server.lock().unwrap();
    let Ok(server) = TcpStream::connect(address).await else { return };
    let (mut requests, mut to_client) = client.into_split();
    let (mut answers, mut to_server) = server.into_split();
    let streams = Mutex::new(Streams::default());
    let watch_fault = || *state.watch_fault.lock().unwrap();
    let asked = |bytes: &[u8]| streams.lock().unwrap().on_client_data(bytes);
    let inspect = |bytes: &[u8]| streams.lock().unwrap().on_server_data(bytes, watch_fault());
    // When one side closes, both are closed.
    tokio::select! {
        _ = pump(&mut requests, &mut to_server, &state, false, asked) => {}
        _ = pump(&mut answers, &mut to_client, &state, true, inspect) => {}
        _ = resets.changed() => to_client.as_ref().set_zero_linger().unwrap(),
    }
}

async fn pump(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    state: &State,
    answers: bool,
    change: impl Fn(&[u8]) -> Vec<u8>,
) -> std::io::Result<()> {
    let mut frozen = state.frozen.subscribe();
    let mut buf = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut buf).await?;
        if answers {
            sleep(Duration::from_millis(state.delay.load(Ordering::SeqCst))).await;
        }
        // The state owns the sender.
        let _ = frozen.wait_for(|frozen| !frozen).await;
        if n == 0 {
            return Ok(());
        }
        if !(answers && state.drops_answers.load(Ordering::SeqCst)) {
            to.write_all(&change(&buf[..n])).await?;
        }
    }
}
