//! An endless watch of the leases.
//!
//! Each long poll waits for the first event after an index and is answered with that event alone, so following is a
//! sequence of polls. etcd keeps the last 1000 events of the whole store; a watch that is further behind must list.
//!
//! If events arrive faster than they can be polled one by one, as when all hosts of a site start, every host would fall
//! further and further behind. A watch that receives many events in a row that were already over when it asked for them
//! therefore lists, with growing pauses, until it has caught up.
//!
//! ```text
//!                 snapshot                 headers
//!   ──► Listing ────────────► Opening ◄───────────► Following
//!        │ ▲ ▲                 │ ▲ │      event,     │ │
//!        └─┘ │  error          └─┘ │      empty,     │ │
//!       pause│                pause│      quiet      │ │
//!            └───── pause ─────────┴─────────────────┘ │ directory removed, behind
//!               cleared, other store ▲──── pause ──────┘ failed
//! ```
//!
//! A quiet poll is repeated after a while, which shows whether the member still answers. A partitioned member answers too,
//! but its Raft index stands still, because it does not receive the time. In that case a quorum read looks for a member
//! that belongs to the cluster.
//!
//! The state machine lives in the stream: it runs when the stream is polled and ends when it is dropped.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{RegistryEvent, Revision};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper::Method;
use tokio::time::{sleep, timeout};

use super::cluster::{CallError, LongPoll, PollConnection};
use super::keys::{KeyChange, path};
use super::member::ApiRequest;
use super::request_counters::CallKind;
use super::response::{EtcdError, StoreHeaders, parse};
use super::store::Store;
use crate::etcd::{EventQueue, Position};

/// An empty response that arrives sooner is not that of a server that ended a quiet poll.
const SHORTEST_POLL: Duration = Duration::from_secs(1);

/// The number of consecutive late events after which a watch is behind. A list costs as much as a few to a few hundred
/// events, and fewer are soon polled.
const BEHIND: u32 = 16;

/// Watches a store after a revision, or from a snapshot.
pub(super) fn watch(store: Arc<Store>, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
    let state = match after {
        Some(revision) => WatchState::Opening(Position::after(revision), None),
        None => WatchState::Listing,
    };
    if let Some(revision) = after {
        notify_config(&store, revision.0);
    }
    let watch = Watch { store, state, queue: EventQueue::default(), late: 0, quiet_at: None };
    stream::unfold(watch, |watch| async { Some(watch.next().await) }).boxed()
}

/// Has the config read again if the store changed since it was read. The watch covers changes after this revision.
fn notify_config(store: &Store, revision: u64) {
    if store.config_revision.get() != Some(revision) {
        store.config_changes.notify();
    }
}

struct Watch {
    store: Arc<Store>,
    state: WatchState,
    queue: EventQueue,
    /// The number of consecutive events that were over when they were asked for, up to [`BEHIND`].
    late: u32,
    /// The member of the last quiet poll, and its Raft index then.
    quiet_at: Option<(usize, u64)>,
}

enum WatchState {
    /// Nothing is known; all leases must be read.
    Listing,
    /// Everything up to a position is known; a poll must be started, on a connection if there is one.
    Opening(Position, Option<PollConnection>),
    /// Everything up to a position is known, and a poll is waiting for the next event.
    Following(Position, Box<LongPoll>, Instant),
}

impl Watch {
    async fn next(mut self) -> (RegistryEvent, Self) {
        loop {
            if let Some(event) = self.queue.pop() {
                return (event, self);
            }
            if let Some(pause) = self.queue.take_pause() {
                sleep(pause).await;
            }
            self.state = match mem::replace(&mut self.state, WatchState::Listing) {
                WatchState::Listing => self.list().await,
                WatchState::Opening(known, connection) => self.open(known, connection).await,
                WatchState::Following(known, poll, since) => self.follow(known, poll, since).await,
            };
        }
    }

    async fn list(&mut self) -> WatchState {
        match self.store.list().await {
            Ok((position, snapshot)) => {
                notify_config(&self.store, position.revision);
                self.queue.push([RegistryEvent::Snapshot(snapshot)]);
                WatchState::Opening(position, None)
            }
            Err(error) => self.fail(error, WatchState::Listing),
        }
    }

    async fn open(&mut self, known: Position, connection: Option<PollConnection>) -> WatchState {
        let index = known.revision.saturating_add(1);
        // The config is in the same directory as the leases, so one poll covers both.
        let directory = path(self.store.keys.network());
        let request = ApiRequest {
            kind: CallKind::Poll,
            method: Method::GET,
            path: format!("{directory}?recursive=true&wait=true&waitIndex={index}"),
            form: None,
        };
        let poll = match self.store.cluster.poll(&request, connection).await {
            Ok(poll) => poll,
            Err(CallError::Etcd(error, _))
                if matches!(error.code, EtcdError::INDEX_CLEARED | EtcdError::WATCHER_CLEARED) =>
            {
                return self.relist(&error.to_string());
            }
            Err(error) => return self.fail(error, WatchState::Opening(known, None)),
        };
        let headers = match poll.is_pending() {
            false => poll.headers,
            // A proxy may hold the headers back until the next event; then a read shows the position of the store.
            true => match self.store.get(self.store.keys.config(), false).await {
                Ok(Ok(response)) => response.headers,
                Ok(Err(absent)) => StoreHeaders { index: Some(absent.index), ..StoreHeaders::default() },
                Err(error) => return self.fail(error, WatchState::Opening(known, None)),
            },
        };
        let member = headers.position(known);
        if !known.can_continue_at(&member) {
            self.store.cluster.endpoints.skip(poll.member);
            return self.relist("the store was replaced, or a member lags behind");
        }
        let stands_still = self.quiet_at.take().is_some_and(|at| Some(at) == raft_index(&poll));
        if stands_still && is_partitioned(&self.store, poll.member).await {
            return self.broken("the member is cut off from the cluster", known, &poll);
        }
        self.queue.available();
        self.store.cluster.contact.record();
        let position = Position { revision: known.revision, ..member };
        WatchState::Following(position, Box::new(poll), Instant::now())
    }

    async fn follow(&mut self, known: Position, mut poll: Box<LongPoll>, since: Instant) -> WatchState {
        let (epoch, silence) = (poll.epoch, self.store.silence);
        let body = tokio::select! {
            biased;
            body = timeout(silence, poll.body()) => body,
            // The next poll returns an event in flight, because it has the same index.
            () = self.store.cluster.epoch.ended(epoch) => return WatchState::Opening(known, None),
        };
        match body {
            Ok(Ok(body)) if body.trim_ascii().is_empty() => {
                if since.elapsed() < SHORTEST_POLL {
                    self.queue.back_off();
                } else {
                    self.caught_up();
                }
                // There was no event up to the index in the headers, or the response would have been that event.
                let revision = known.revision.max(poll.headers.index.unwrap_or_default());
                WatchState::Opening(Position { revision, ..known }, poll.into_connection())
            }
            Ok(Ok(body)) => self.take_event(known, &body, *poll),
            Ok(Err(error)) => self.broken(&error.to_string(), known, &poll),
            Err(_) => {
                self.caught_up();
                self.quiet_at = raft_index(&poll);
                // The next poll returns an event in flight, because it has the same index.
                WatchState::Opening(known, None)
            }
        }
    }

    fn take_event(&mut self, known: Position, body: &[u8], poll: LongPoll) -> WatchState {
        let response = match parse(body) {
            Ok(response) => response,
            Err(error) => return self.relist(&error.to_string()),
        };
        let revision = response.node.modified_index;
        self.store.cluster.contact.record_at(revision);
        if revision <= known.revision {
            return self.relist("a member repeated an earlier event");
        }
        if poll.headers.index.is_some_and(|index| revision <= index) {
            self.late += 1;
        } else {
            self.caught_up();
        }
        if response.node.key == self.store.keys.config() {
            self.store.config_changes.notify();
        }
        let change = self.store.keys.read_change(&response, &mut self.store.revisions());
        match change {
            KeyChange::Events(events) => {
                self.queue.push(events);
                if self.late >= BEHIND {
                    // One more late event after the list means that the watch is still behind.
                    self.late = BEHIND - 1;
                    return self.relist("events arrive faster than they can be polled");
                }
                WatchState::Opening(Position { revision, ..known }, poll.into_connection())
            }
            KeyChange::DirectoryRemoved => self.relist("a directory was removed with its entries"),
        }
    }

    /// Notes that no event was over before it was asked for.
    fn caught_up(&mut self) {
        self.late = 0;
        self.queue.reset_backoff();
    }

    /// Reads all leases because events may be missing.
    fn relist(&mut self, reason: &str) -> WatchState {
        tracing::debug!(reason, "reading all leases again");
        self.queue.back_off();
        WatchState::Listing
    }

    /// Moves on from the member that served the watch.
    fn broken(&mut self, reason: &str, known: Position, poll: &LongPoll) -> WatchState {
        let endpoints = &self.store.cluster.endpoints;
        endpoints.skip(poll.member);
        let reason = format!("{}: {reason}", endpoints.url(poll.member));
        self.fail(CallError::NoAnswer(reason.into()), WatchState::Opening(known, None))
    }

    /// Continues with `state` after a pause.
    fn fail(&mut self, error: CallError, state: WatchState) -> WatchState {
        self.queue.unavailable(&error.into_reason());
        state
    }
}

/// Returns the member of a poll and its Raft index.
fn raft_index(poll: &LongPoll) -> Option<(usize, u64)> {
    poll.headers.raft.map(|raft| (poll.member, raft))
}

/// Finds out whether a member is partitioned, with a quorum read; the member that answers it becomes the first to ask.
async fn is_partitioned(store: &Store, member: usize) -> bool {
    store.get(store.keys.config(), false).await.is_err() || store.cluster.endpoints.current() != member
}
