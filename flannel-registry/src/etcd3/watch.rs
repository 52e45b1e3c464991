//! A watch that never ends.
//!
//! ```text
//!                 snapshot                created
//!   ──► Listing ────────────► Opening ────────────► Following ──┐ events, quiet, alive
//!        │ ▲ ▲                 │ ▲ │                 │ │  ▲─────┘
//!        └─┘ │  failed         └─┘ │ compacted,      │ │
//!       pause│                pause│ another store   │ │
//!            └───── pause ─────────┴─────────────────┘ │
//!                                ▲───── pause ─────────┘ broke, ended, went silent
//! ```
//!
//! A watch that is given a revision begins at Opening. Every way back has a pause, so that nothing is ever tried
//! without rest. The machine lives in the stream: it moves when the stream is polled and is gone when it is dropped.

use std::mem;
use std::sync::Arc;

use etcd_client::{WatchOptions, WatchStream};
use flannel_core::{RegistryEvent, Revision};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::{sleep, timeout};

use super::Store;
use super::calls::Call;
use super::cluster::{Failure, failure};
use super::position::{Notice, Verdict, judge};
use crate::etcd::{Position, Teller};

/// A silent watch asks for a word this often before it is given up.
const QUESTIONS: u32 = 2;

/// Follows a store after a revision, or from a snapshot.
pub(super) fn watch(store: Arc<Store>, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
    let state = match after {
        Some(revision) => State::Opening(Position::after(revision)),
        None => State::Listing,
    };
    let watch = Watch { store, state, teller: Teller::default() };
    stream::unfold(watch, |watch| async { Some(watch.next().await) }).boxed()
}

struct Watch {
    store: Arc<Store>,
    state: State,
    teller: Teller,
}

enum State {
    /// Nothing is known: everything must be read.
    Listing,
    /// Everything up to a position is known.
    Opening(Position),
    /// Everything up to a position is known, and the rest will be told.
    Following(Position, Box<Subscription>),
}

/// An open watch.
struct Subscription {
    stream: WatchStream,
    /// The member that serves it.
    member: usize,
    /// How often it was asked for a word since it last gave one.
    questions: u32,
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
                State::Opening(known) => self.open(known).await,
                State::Following(known, subscription) => self.follow(known, subscription).await,
            };
        }
    }

    async fn list(&mut self) -> State {
        match self.store.list().await {
            Ok((position, snapshot)) => {
                self.teller.tell([RegistryEvent::Snapshot(snapshot)]);
                State::Opening(position)
            }
            Err(failure) => self.fail(failure, State::Listing),
        }
    }

    async fn open(&mut self, known: Position) -> State {
        let keys = &self.store.keys;
        let options = WatchOptions::new()
            .with_range(keys.subnets_end())
            .with_start_revision(known.signed_revision().saturating_add(1))
            .with_progress_notify();
        let call = self.store.cluster.call(Call::Watch, |mut connection| {
            let options = options.clone();
            async move {
                let mut stream = connection.watch.watch(keys.subnets(), Some(options)).await?;
                let first = stream.message().await?;
                Ok((stream, first))
            }
        });
        let answer = match call.await {
            Ok(answer) => answer,
            Err(failure) => return self.fail(failure, State::Opening(known)),
        };
        let (stream, first) = answer.value;
        let subscription = Box::new(Subscription { stream, member: answer.member, questions: 0 });
        match first {
            Some(first) => self.obey(judge(known, Notice::read(keys, &first)), known, subscription),
            None => self.broken("it ended at once", known, &subscription),
        }
    }

    async fn follow(&mut self, known: Position, mut subscription: Box<Subscription>) -> State {
        let patience = self.store.silence / (QUESTIONS + 1);
        match timeout(patience, subscription.stream.message()).await {
            Ok(Ok(Some(response))) => {
                subscription.questions = 0;
                self.teller.served();
                let notice = Notice::read(&self.store.keys, &response);
                self.obey(judge(known, notice), known, subscription)
            }
            Ok(Ok(None)) => self.broken("etcd ends the watch", known, &subscription),
            Ok(Err(error)) => {
                let reason = failure(&error, self.store.cluster.url(subscription.member)).into_reason();
                self.broken(&reason.to_string(), known, &subscription)
            }
            Err(_) if subscription.questions == QUESTIONS => {
                let reason = format!("no word within {:?}", self.store.silence);
                self.broken(&reason, known, &subscription)
            }
            Err(_) => {
                subscription.questions += 1;
                match subscription.stream.request_progress().await {
                    Ok(()) => State::Following(known, subscription),
                    Err(_) => self.broken("the watch cannot be asked", known, &subscription),
                }
            }
        }
    }

    fn obey(&mut self, verdict: Verdict, known: Position, subscription: Box<Subscription>) -> State {
        match verdict {
            Verdict::Follow(position, events) => {
                self.teller.heard();
                self.teller.tell(events);
                State::Following(position, subscription)
            }
            Verdict::List(reason) => {
                tracing::debug!(%reason, "reading all leases again");
                self.store.cluster.leave(subscription.member);
                self.teller.rest();
                State::Listing
            }
            Verdict::Reopen(reason) => self.broken(&reason, known, &subscription),
        }
    }

    /// The member that serves the watch no longer does.
    fn broken(&mut self, reason: &str, known: Position, subscription: &Subscription) -> State {
        self.store.cluster.leave(subscription.member);
        let failure = Failure::Away(reason.to_owned().into());
        self.fail(failure, State::Opening(known))
    }

    /// Goes on with `state` after a pause.
    fn fail(&mut self, failure: Failure, state: State) -> State {
        self.teller.fail(failure.into_reason().to_string());
        state
    }
}
