//! A steady ping: one thread sends at fixed times, one receives the answers.

use super::echo::{self, Reply};
use super::report::{Answers, PingReport};
use super::{PingError, PingOptions};
use crate::eventually;
use flannel_netlink::Namespace;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long the receiving thread waits for an answer before it checks whether to stop.
const TICK: Duration = Duration::from_millis(10);
/// The sequence number and the time of sending, 8 bytes each, which the answer echoes.
const STAMP: usize = 16;

/// A ping that runs until it is stopped. Dropping it stops it.
#[derive(Debug)]
pub struct RunningPing {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<()>>,
}

impl RunningPing {
    /// Starts sending an echo request from `namespace` to `to` every `interval`, such as 5 ms.
    ///
    /// The payload has at least 16 bytes, as it contains a stamp.
    ///
    /// # Errors
    /// [`PingError::Unreachable`] without any route, [`PingError::Socket`] without CAP_NET_RAW.
    pub fn start(
        namespace: &Namespace,
        to: IpAddr,
        interval: Duration,
        options: &PingOptions,
    ) -> Result<Self, PingError> {
        let socket = super::open_in(namespace, to, options)?;
        socket.set_read_timeout(Some(TICK))?;
        let shared = Arc::new(Shared {
            socket,
            is_ipv4: to.is_ipv4(),
            identifier: super::next_identifier(),
            payload: options.payload.max(STAMP),
            patience: options.timeout,
            started: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            sending_ended: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let mut running = Self { shared, sender: None, receiver: None };
        let shared = Arc::clone(&running.shared);
        let builder = || thread::Builder::new().name("ping".to_owned());
        running.receiver = Some(builder().spawn(move || shared.receive())?);
        let shared = Arc::clone(&running.shared);
        running.sender = Some(builder().spawn(move || shared.send(interval))?);
        Ok(running)
    }

    /// Returns the number of requests answered so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Acquire)
    }

    /// Waits for `count` more answers, so that a fault hits a ping that works, and a test ends after it works again.
    ///
    /// # Errors
    /// Contains how many arrived within `limit`.
    pub fn wait_for_replies(&self, count: u64, limit: Duration) -> Result<(), crate::DeadlineExceeded> {
        let before = self.received();
        eventually(limit, || {
            let came = self.received() - before;
            if came >= count { Ok(()) } else { Err(format!("{came} of {count} answers")) }
        })
    }

    /// Returns the result so far. Requests in flight count as lost.
    #[must_use]
    pub fn report(&self) -> PingReport {
        self.shared.report(self.shared.started.elapsed())
    }

    /// Stops sending, waits at most the options' `timeout` for the answers in flight, and returns the result.
    #[must_use]
    pub fn stop(mut self) -> PingReport {
        self.end();
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.shared.sent.load(Ordering::Acquire);
        state.answers.report(sent, state.stopped, state.last_refusal.clone())
    }

    fn end(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        join(self.sender.take());
        // Only now is the number of expected answers final.
        self.shared.sending_ended.store(true, Ordering::Release);
        join(self.receiver.take());
    }
}

impl Drop for RunningPing {
    fn drop(&mut self) {
        self.end();
    }
}

fn join(thread: Option<JoinHandle<()>>) {
    if let Some(Err(_)) = thread.map(JoinHandle::join) {
        tracing::error!("a thread of a running ping panicked");
    }
}

/// The state shared by both threads.
#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    is_ipv4: bool,
    identifier: u16,
    payload: usize,
    patience: Duration,
    started: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    stopping: AtomicBool,
    sending_ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    answers: Answers,
    last_refusal: Option<String>,
    /// When sending ended, relative to the start.
    stopped: Duration,
}

impl Shared {
    /// Sends each request at its time until the ping is stopped.
    fn send(&self, interval: Duration) {
        let mut due = self.started;
        for sequence in 0.. {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if self.stopping.load(Ordering::Acquire) {
                break;
            }
            // Counted first, so that no answer belongs to a request that is not counted yet.
            self.sent.store(sequence + 1, Ordering::Release);
            if let Err(error) = self.send_one(sequence) {
                self.state.lock().unwrap_or_else(PoisonError::into_inner).last_refusal =
                    Some(error.to_string());
            }
            // After a suspend, the missed requests are skipped, not sent in a burst.
            due = (due + interval).max(Instant::now());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = self.started.elapsed();
    }

    fn send_one(&self, sequence: u64) -> io::Result<()> {
        let payload = self.payload(sequence, self.started.elapsed());
        let message = echo::request(self.is_ipv4, self.identifier, sequence as u16, &payload);
        // The kernel may report the error of an earlier packet at the next call.
        self.socket.send(&message).or_else(|_| self.socket.send(&message)).map(drop)
    }

    /// Returns the payload: the sequence number, the time of sending in nanoseconds since the start, and a pattern that
    /// depends on the former.
    fn payload(&self, sequence: u64, at: Duration) -> Vec<u8> {
        let mut payload = vec![sequence as u8; self.payload];
        payload[..8].copy_from_slice(&sequence.to_be_bytes());
        let nanoseconds = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
        payload[8..STAMP].copy_from_slice(&nanoseconds.to_be_bytes());
        payload
    }

    /// Receives answers until all have arrived, or the ping has been stopped for longer than its timeout.
    fn receive(&self) {
        let mut buf = vec![0; self.payload + echo::MAX_HEADERS];
        let (mut end, mut is_empty) = (None, false);
        loop {
            if self.sending_ended.load(Ordering::Acquire) {
                let end = *end.get_or_insert_with(|| Instant::now() + self.patience);
                let all = self.received.load(Ordering::Acquire) == self.sent.load(Ordering::Acquire);
                // Reads what came in time, even if the thread was not scheduled for long.
                if all || is_empty && Instant::now() >= end {
                    return;
                }
            }
            let received = self.socket.recv(&mut buf);
            is_empty = received.as_ref().is_err_and(super::is_no_packet);
            // Errors report unreachable hosts; their requests are counted as lost.
            if let Ok(n) = received
                && let Some(reply) = Reply::decode(self.is_ipv4, buf.get(..n).unwrap_or_default())
                && reply.identifier == self.identifier
            {
                self.note(&reply);
            }
        }
    }

    /// Returns the result of a ping that ran until `stopped`.
    fn report(&self, stopped: Duration) -> PingReport {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.sent.load(Ordering::Acquire);
        state.answers.report(sent, stopped, state.last_refusal.clone())
    }

    fn note(&self, reply: &Reply<'_>) {
        let arrival = self.started.elapsed();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = reply.payload.split_first_chunk().and_then(|(sequence, rest)| {
            let sent_at = rest.first_chunk()?;
            Some((u64::from_be_bytes(*sequence), Duration::from_nanos(u64::from_be_bytes(*sent_at))))
        });
        match stamp {
            Some((sequence, sent_at))
                if sequence as u16 == reply.sequence && reply.payload == self.payload(sequence, sent_at) =>
            {
                let sent = self.sent.load(Ordering::Acquire);
                state.answers.note(sequence, sent, arrival.saturating_sub(sent_at), arrival);
                self.received.store(state.answers.received(), Ordering::Release);
            }
            _ => state.answers.note_altered(),
        }
    }
}
