//! A watch that never ends.
//!
//! Each request waits for the first event after an index, and is answered with that one alone; so following is asking
//! again and again. etcd remembers the last 1000 events of the whole store: whoever asks for older ones must list.
//!
//! Where more happens than can be asked for one by one, as when a whole site starts, all hosts would ask for each event
//! of all hosts and fall behind further and further. So a watch that hears of events only after they happened, many
//! times in a row, reads everything instead, with longer and longer pauses, until it is up to date again.
//!
//! ```text
//!                 snapshot                 head
//!   ──► Listing ────────────► Opening ◄───────────► Following
//!        │ ▲ ▲                 │ ▲ │      event,     │ │
//!        └─┘ │  failed         └─┘ │      empty,     │ │
//!       pause│                pause│      quiet      │ │
//!            └───── pause ─────────┴─────────────────┘ │ a directory went, behind
//!                cleared, another store ▲──── pause ───┘ broke
//! ```
//!
//! A request that hears nothing is made anew after a while, which shows whether the member still answers. A member that
//! is cut off from the others answers too, but does not hear what time it is: if its raft index stands still, a read
//! by quorum finds one that belongs to the cluster.
//!
//! The machine lives in the stream: it moves when the stream is polled and is gone when it is dropped.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::{RegistryEvent, Revision};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper::Method;
use tokio::time::{sleep, timeout};

use super::Store;
use super::answer::{EtcdError, read};
use super::calls::Call;
use super::cluster::{Failure, Line, Poll};
use super::keys::{Change, path};
use super::member::Ask;
use crate::etcd::{Position, Teller};

/// An empty answer that comes sooner is not that of a server that got tired of waiting.
const SHORTEST_POLL: Duration = Duration::from_secs(1);

/// After so many events in a row that were over when they were asked for, a watch is behind. A list is as long as a
/// few events to a few hundred, and fewer are soon asked for.
const BEHIND: u32 = 16;

/// Follows a store after a revision, or from a snapshot.
pub(super) fn watch(store: Arc<Store>, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
    let state = match after {
        Some(revision) => State::Opening(Position::after(revision), None),
        None => State::Listing,
    };
    if let Some(revision) = after {
        look_at_config(&store, revision.0);
    }
    let watch = Watch { store, state, teller: Teller::default(), late: 0, quiet_at: None };
    stream::unfold(watch, |watch| async { Some(watch.next().await) }).boxed()
}

/// Has the configuration read again, if anything was written since it was: that may have been it. The watch tells what
/// comes behind this revision.
fn look_at_config(store: &Store, revision: u64) {
    if store.config_read.get() != Some(revision) {
        store.configured.tell();
    }
}

struct Watch {
    store: Arc<Store>,
    state: State,
    teller: Teller,
    /// How many events in a row were over when they were asked for, up to [`BEHIND`].
    late: u32,
    /// The member that had nothing to tell last, and its raft index at that time.
    quiet_at: Option<(usize, u64)>,
}

enum State {
    /// Nothing is known: everything must be read.
    Listing,
    /// Everything up to a position is known; there may be a connection to ask over.
    Opening(Position, Option<Line>),
    /// Everything up to a position is known, and the next event will be told.
    Following(Position, Box<Poll>, Instant),
}

impl Watch {
    async fn next(mut self) -> (RegistryEvent, Self) {
        loop {
            if let Some(event) = self.teller.next() {
                return (event, self);
            }
            if let Some(pause) = self.teller.pause() {
                sleep(pause).await;
            }
            self.state = match mem::replace(&mut self.state, State::Listing) {
                State::Listing => self.list().await,
                State::Opening(known, line) => self.open(known, line).await,
                State::Following(known, poll, since) => self.follow(known, poll, since).await,
            };
        }
    }

    async fn list(&mut self) -> State {
        match self.store.list().await {
            Ok((position, snapshot)) => {
                look_at_config(&self.store, position.revision);
                self.teller.tell([RegistryEvent::Snapshot(snapshot)]);
                State::Opening(position, None)
            }
            Err(failure) => self.fail(failure, State::Listing),
        }
    }

    async fn open(&mut self, known: Position, line: Option<Line>) -> State {
        let index = known.revision.saturating_add(1);
        // The configuration lies beside the leases, and is told in the same breath.
        let directory = path(self.store.keys.network());
        let ask = Ask {
            call: Call::Poll,
            method: Method::GET,
            path: format!("{directory}?recursive=true&wait=true&waitIndex={index}"),
            form: None,
        };
        let poll = match self.store.cluster.poll(&ask, line).await {
            Ok(poll) => poll,
            Err(Failure::Said(error, _))
                if matches!(error.code, EtcdError::INDEX_CLEARED | EtcdError::WATCHER_CLEARED) =>
            {
                return self.list_again(&error.to_string());
            }
            Err(failure) => return self.fail(failure, State::Opening(known, None)),
        };
        let member = poll.head.position(known);
        if !known.leads_on_at(&member) {
            self.store.cluster.leave(poll.line.member);
            return self.list_again("the store is not the one known, or a member lags behind");
        }
        let stands_still = self.quiet_at.take().is_some_and(|at| Some(at) == quiet(&poll));
        if stands_still && is_cut_off(&self.store, poll.line.member).await {
            return self.broken("the member is cut off from the others", known, &poll);
        }
        self.teller.heard();
        self.store.cluster.word.heard();
        State::Following(Position { revision: known.revision, ..member }, Box::new(poll), Instant::now())
    }

    async fn follow(&mut self, known: Position, mut poll: Box<Poll>, since: Instant) -> State {
        let (moves, silence) = (poll.moves, self.store.silence);
        let answer = tokio::select! {
            biased;
            answer = timeout(silence, poll.answer()) => answer,
            // An event that is under way is told again from the same index.
            () = self.store.cluster.moves.beyond(moves) => return State::Opening(known, None),
        };
        match answer {
            Ok(Ok(body)) if body.trim_ascii().is_empty() => {
                if since.elapsed() < SHORTEST_POLL {
                    self.teller.rest();
                } else {
                    self.up_to_date();
                }
                // Otherwise the answer would have been an event.
                let revision = known.revision.max(poll.head.index.unwrap_or_default());
                State::Opening(Position { revision, ..known }, Some(poll.line))
            }
            Ok(Ok(body)) => self.take_in(known, &body, *poll),
            Ok(Err(error)) => self.broken(&error.to_string(), known, &poll),
            Err(_) => {
                self.up_to_date();
                self.quiet_at = quiet(&poll);
                // An event that is under way is told again from the same index.
                State::Opening(known, None)
            }
        }
    }

    fn take_in(&mut self, known: Position, body: &[u8], poll: Poll) -> State {
        let told = match read(body) {
            Ok(told) => told,
            Err(error) => return self.list_again(&error.to_string()),
        };
        let revision = told.node.modified_index;
        self.store.cluster.word.heard_at(revision);
        if revision <= known.revision {
            return self.list_again("a member told again what was told before");
        }
        if poll.head.index.is_some_and(|index| revision <= index) {
            self.late += 1;
        } else {
            self.up_to_date();
        }
        if told.node.key == self.store.keys.config() {
            self.store.configured.tell();
        }
        let change = self.store.keys.read_change(&told, &mut self.store.revisions());
        match change {
            Change::Told(events) => {
                self.teller.tell(events);
                if self.late >= BEHIND {
                    // One more such event after the list and it is behind still.
                    self.late = BEHIND - 1;
                    return self.list_again("more happens than can be asked for one by one");
                }
                State::Opening(Position { revision, ..known }, Some(poll.line))
            }
            Change::DirectoryGone => self.list_again("a directory was removed with all that was in it"),
        }
    }

    /// Nothing happened that was not asked for before.
    fn up_to_date(&mut self) {
        self.late = 0;
        self.teller.served();
    }

    /// What happened in between can only be read.
    fn list_again(&mut self, reason: &str) -> State {
        tracing::debug!(reason, "reading all leases again");
        self.teller.rest();
        State::Listing
    }

    /// The member that serves the watch no longer does.
    fn broken(&mut self, reason: &str, known: Position, poll: &Poll) -> State {
        self.store.cluster.leave(poll.line.member);
        let reason = format!("{}: {reason}", self.store.cluster.url(poll.line.member));
        self.fail(Failure::Away(reason.into()), State::Opening(known, None))
    }

    /// Goes on with `state` after a pause.
    fn fail(&mut self, failure: Failure, state: State) -> State {
        self.teller.fail(failure.into_reason().to_string());
        state
    }
}

/// Which member has nothing to tell, and how far it is.
fn quiet(poll: &Poll) -> Option<(usize, u64)> {
    poll.head.raft.map(|raft| (poll.line.member, raft))
}

/// Finds out whether a member is cut off, by asking all of them; the one that answers stays the first to be asked.
async fn is_cut_off(store: &Store, member: usize) -> bool {
    store.get(store.keys.config()).await.is_err() || store.cluster.current() != member
}
