//! A watch that never ends.
//!
//! ```text
//!                 snapshot                created
//!   ──► Listing ────────────► Opening ────────────► Following ──┐ events, quiet, alive, audit
//!        │ ▲ ▲                 │ ▲ │                 │ │  ▲─────┘
//!        └─┘ │  failed         └─┘ │ compacted,      │ │
//!       pause│                pause│ another store   │ │
//!            └───── pause ─────────┴─────────────────┘ │
//!                                ▲───── pause ─────────┘ broke, ended, went silent; at once if this host moved
//! ```
//!
//! An audit is a list beside the open watch, now and then: it is told as a snapshot, and the watch goes on behind it.
//!
//! A watch that is given a revision begins at Opening. Every way back has a pause, so that nothing is ever tried
//! without rest. The machine lives in the stream: it moves when the stream is polled and is gone when it is dropped.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use flannel_core::{RegistryEvent, Revision};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

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
    let mut watch = Watch { store, state, teller: Teller::default(), audit: None };
    watch.plan_audit();
    stream::unfold(watch, |watch| async { Some(watch.next().await) }).boxed()
}

struct Watch {
    store: Arc<Store>,
    state: State,
    teller: Teller,
    /// When the next audit is due.
    audit: Option<Instant>,
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
    /// How often this host had moved when it was opened.
    moves: u64,
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
                self.plan_audit();
                self.teller.tell([RegistryEvent::Snapshot(snapshot)]);
                State::Opening(position)
            }
            Err(failure) => self.fail(failure, State::Listing),
        }
    }

    /// Reads everything though nothing is known to be missing.
    async fn audit(&mut self, known: Position, subscription: Box<Subscription>) -> State {
        let listed = self.store.list().await;
        self.plan_audit();
        let (position, snapshot) = match listed {
            Ok(listed) => listed,
            Err(failure) => return self.broken(&failure.into_reason().to_string(), known, &subscription),
        };
        self.teller.tell([RegistryEvent::Snapshot(snapshot)]);
        match known.leads_on_at(&position) {
            // What the watch has yet to tell up to there is in the snapshot.
            true => State::Following(position, subscription),
            false => State::Opening(position),
        }
    }

    fn plan_audit(&mut self) {
        let spread = 0.75 + fastrand::f64() / 2.0;
        let due = self.store.audit.map(|interval| Instant::now() + interval.mul_f64(spread));
        self.audit = due;
    }

    async fn open(&mut self, known: Position) -> State {
        let moves = self.store.cluster.moves.count();
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
                refused(first.as_ref())?;
                Ok((stream, first))
            }
        });
        let answer = match call.await {
            Ok(answer) => answer,
            Err(failure) => return self.fail(failure, State::Opening(known)),
        };
        let (stream, first) = answer.value;
        let subscription = Box::new(Subscription { stream, member: answer.member, moves, questions: 0 });
        match first {
            Some(first) => self.obey(judge(known, Notice::read(keys, &first)), known, subscription),
            None => self.broken("it ended at once", known, &subscription),
        }
    }

    async fn follow(&mut self, known: Position, mut subscription: Box<Subscription>) -> State {
        let patience = self.store.silence / (QUESTIONS + 1);
        let to_audit = self.audit.map(|due| due.saturating_duration_since(Instant::now()));
        if to_audit == Some(Duration::ZERO) {
            return self.audit(known, subscription).await;
        }
        let heard = timeout(patience.min(to_audit.unwrap_or(patience)), subscription.stream.message());
        let heard = tokio::select! {
            biased;
            heard = heard => heard,
            () = self.store.cluster.moves.beyond(subscription.moves) => return State::Opening(known),
        };
        match heard {
            Err(_) if to_audit.is_some_and(|left| left < patience) => State::Following(known, subscription),
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
                self.store.cluster.word.heard_at(position.revision);
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

/// etcd accepts a watch whose token it does not know, or whose user may not watch, and cancels it at once. Up to 3.5 it
/// says `permission denied` in both cases. As an error it is treated like that of any call.
fn refused(first: Option<&WatchResponse>) -> Result<(), etcd_client::Error> {
    let reason = first.filter(|first| first.canceled()).map_or("", |first| first.cancel_reason());
    let for_the_user = ["permission denied", "auth token", "auth store", "user name is empty"];
    match for_the_user.iter().any(|words| reason.contains(words)) {
        true => Err(Status::unauthenticated(reason).into()),
        false => Ok(()),
    }
}
