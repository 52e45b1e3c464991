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
use super::keys::{revision, unsigned};
use super::position::{Notification, Verdict, judge};
use crate::etcd::{Position, Teller};

/// A silent watch asks for a word this often before it is given up.
const QUESTIONS: u32 = 2;

/// Follows a store after a revision, or from a snapshot.
pub(super) fn watch(store: Arc<Store>, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
    let state = match after {
        Some(revision) => State::Opening(Position::after(revision)),
        None => State::Listing,
    };
    let config = store.config_read.get();
    let mut watch =
        Watch { store, state, teller: Teller::default(), audit: None, config, listed: after.is_some() };
    watch.plan_audit();
    stream::unfold(watch, |watch| async { Some(watch.next().await) }).boxed()
}

struct Watch {
    store: Arc<Store>,
    state: State,
    teller: Teller,
    /// When the next audit is due.
    audit: Option<Instant>,
    /// Up to which revision the configuration is known, or it was said to look.
    config: Option<u64>,
    /// Whether the leases were listed before.
    listed: bool,
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
    /// What etcd calls the watch of the leases; the one of the configuration has another name.
    id: i64,
    /// The member that serves it.
    member: usize,
    /// How often this host had moved when it was opened.
    moves: u64,
    /// How often it was asked for a word since it last gave one.
    questions: u32,
}

impl Subscription {
    /// An answer to a question for a word is of neither, and has no name. A watch that is refused has none, too, and only
    /// the second one is opened while this is read.
    fn is_of_config(&self, response: &WatchResponse) -> bool {
        let id = response.watch_id();
        id != self.id && (id >= 0 || response.created())
    }
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
                // Whatever made another list necessary may have made the watch miss something of the configuration.
                if mem::replace(&mut self.listed, true) || self.config > Some(position.revision) {
                    self.look_at_config(position.revision);
                }
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
        self.look_at_config(position.revision);
        self.teller.tell([RegistryEvent::Snapshot(snapshot)]);
        match known.leads_on_at(&position) {
            // What the watch has yet to tell up to there is in the snapshot.
            true => State::Following(position, subscription),
            false => State::Opening(position),
        }
    }

    /// Has the configuration read again; the watch tells what comes behind this revision.
    fn look_at_config(&mut self, revision: u64) {
        self.config = Some(revision);
        self.store.configured.tell();
    }

    fn plan_audit(&mut self) {
        let spread = 0.75 + fastrand::f64() / 2.0;
        let due = self.store.audit.map(|interval| Instant::now() + interval.mul_f64(spread));
        self.audit = due;
    }

    async fn open(&mut self, known: Position) -> State {
        let moves = self.store.cluster.moves.count();
        let store = Arc::clone(&self.store);
        let keys = &store.keys;
        let options = WatchOptions::new()
            .with_range(keys.subnets_end())
            .with_start_revision(known.signed_revision().saturating_add(1))
            .with_progress_notify();
        let call = store.cluster.call(Call::Watch, |mut connection| {
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
        let id = first.as_ref().map_or(0, WatchResponse::watch_id);
        let mut subscription =
            Box::new(Subscription { stream, id, member: answer.member, moves, questions: 0 });
        if self.config.is_none() {
            self.look_at_config(known.revision);
        }
        self.watch_config(&mut subscription).await;
        match first {
            Some(first) => self.obey(judge(known, Notification::read(keys, &first)), known, subscription),
            None => self.broken("it ended at once", known, &subscription),
        }
    }

    /// Follows the configuration over the same subscription, without a call.
    async fn watch_config(&self, subscription: &mut Subscription) {
        let start =
            Position::after(Revision(self.config.unwrap_or_default())).signed_revision().saturating_add(1);
        let options = WatchOptions::new().with_start_revision(start);
        // A subscription that takes no word tells so where it is read.
        let _ = subscription.stream.watch(self.store.keys.config(), Some(options)).await;
    }

    /// Takes in what the subscription says of the configuration.
    async fn hear_config(&mut self, known: Position, subscription: &mut Subscription, told: &WatchResponse) {
        let compacted = unsigned(told.compact_revision());
        if compacted > 0 {
            self.look_at_config(known.revision.max(compacted));
            self.watch_config(subscription).await;
        } else if told.canceled() {
            tracing::debug!(reason = told.cancel_reason(), "changes of the configuration are heard of late");
        }
        let changes = told.events().iter().filter_map(etcd_client::Event::kv);
        if let Some(last) = changes.map(|record| revision(record).0).max() {
            self.look_at_config(last);
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
                if subscription.is_of_config(&response) {
                    self.store.cluster.word.heard();
                    self.hear_config(known, &mut subscription, &response).await;
                    return State::Following(known, subscription);
                }
                let notice = Notification::read(&self.store.keys, &response);
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
