//! An endless watch of the leases.
//!
//! ```text
//!                 snapshot                created
//!   ──► Listing ────────────► Opening ────────────► Following ──┐ events, progress, audit
//!        │ ▲ ▲                 │ ▲ │                 │ │  ▲─────┘
//!        └─┘ │  error          └─┘ │ compacted,      │ │
//!       pause│                pause│ other store     │ │
//!            └───── pause ─────────┴─────────────────┘ │
//!                                ▲───── pause ─────────┘ failed, ended, silent; no pause if the host's addresses changed
//! ```
//!
//! An audit is a list in parallel to the open watch. It is yielded as a snapshot, and the watch continues after it.
//!
//! A watch that resumes after a revision starts at Opening. Every way back has a pause, so nothing is retried in a tight
//! loop. The state machine lives in the stream: it runs when the stream is polled and ends when it is dropped.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{GetOptions, GetResponse, WatchOptions, WatchResponse, WatchStream};
use flannel_core::{RegistryEvent, Revision, SubnetKey};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;

use super::call_error::{CallError, call_error};
use super::connection::Connection;
use super::keys::{revision, unsigned};
use super::records::LeaseList;
use super::request_counters::CallKind;
use super::store::Store;
use super::watch_notice::{WatchAction, WatchNotice, react};
use crate::etcd::{EventQueue, Position};

/// A watch without responses is checked this often within the `silence` of the options.
const CHECKS: u32 = 3;

/// Watches a store after a revision, or from a snapshot.
pub(super) fn watch(store: Arc<Store>, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
    let state = match after {
        Some(revision) => WatchState::Opening(Position::after(revision)),
        None => WatchState::Listing,
    };
    let config = store.config_revision.get();
    let mut watch = Watch {
        store,
        state,
        queue: EventQueue::default(),
        audit: None,
        config,
        listed: after.is_some(),
        released: BTreeSet::new(),
    };
    watch.schedule_audit();
    stream::unfold(watch, |watch| async { Some(watch.next().await) }).boxed()
}

struct Watch {
    store: Arc<Store>,
    state: WatchState,
    queue: EventQueue,
    /// When the next audit is due.
    audit: Option<Instant>,
    /// Changes of the network config up to this revision are known or have been notified.
    config: Option<u64>,
    /// Whether the leases were listed before.
    listed: bool,
    /// Subnets whose release was yielded, and whose record is about to be removed.
    released: BTreeSet<SubnetKey>,
}

enum WatchState {
    /// Nothing is known; all leases must be read.
    Listing,
    /// Everything up to a position is known; a watch must be opened.
    Opening(Position),
    /// Everything up to a position is known, and a watch is open.
    Following(Position, Box<Subscription>),
}

/// An open watch.
struct Subscription {
    stream: WatchStream,
    /// etcd's id of the watch of the leases; the watch of the config has another id.
    id: i64,
    /// The member that serves the watch.
    member: usize,
    /// The connection epoch in which the watch was opened.
    epoch: u64,
    /// Whether a progress request is unanswered. `etcd grpc-proxy` answers none, and etcd 3.6 none while nothing was
    /// written since the watch was opened.
    progress_requested: bool,
    /// The revision of the store at the last check, and the number of leases then.
    checked_revision: Option<u64>,
    checked_leases: Option<i64>,
    /// Whether the last check found a lease that was written after the last event.
    missed: bool,
}

impl Subscription {
    /// Reports whether a response belongs to the watch of the config. Neither a progress response nor a refused watch has
    /// an id; only the watch of the config is opened on an existing stream.
    fn is_of_config(&self, response: &WatchResponse) -> bool {
        let id = response.watch_id();
        id != self.id && (id >= 0 || response.created())
    }
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
                WatchState::Opening(known) => self.open(known).await,
                WatchState::Following(known, subscription) => self.follow(known, subscription).await,
            };
        }
    }

    async fn list(&mut self) -> WatchState {
        match self.store.list().await {
            Ok(list) => {
                self.schedule_audit();
                let position = list.position;
                // Whatever made another list necessary may also have hidden a change of the config.
                if mem::replace(&mut self.listed, true) || self.config > Some(position.revision) {
                    self.notify_config(position.revision);
                }
                self.take_list(list);
                WatchState::Opening(position)
            }
            Err(error) => self.fail(error, WatchState::Listing),
        }
    }

    /// Reads all leases although nothing is known to be missing.
    async fn audit(&mut self, known: Position, subscription: Box<Subscription>) -> WatchState {
        let listed = self.store.list().await;
        self.schedule_audit();
        let list = match listed {
            Ok(list) => list,
            Err(error) => return self.broken(&error.into_reason().to_string(), known, &subscription),
        };
        let position = list.position;
        self.notify_config(position.revision);
        self.take_list(list);
        match known.can_continue_at(&position) {
            // The snapshot contains the events that the watch has yet to yield up to there.
            true => WatchState::Following(position, subscription),
            false => WatchState::Opening(position),
        }
    }

    /// Yields the listed leases, and then the releases among them: their removal is yet to come.
    fn take_list(&mut self, list: LeaseList) {
        self.released = list.releases.iter().map(|(subnet, _)| *subnet).collect();
        self.queue.push([RegistryEvent::Snapshot(list.snapshot)]);
        let releases = list.releases.into_iter();
        self.queue.push(releases.map(|(subnet, revision)| RegistryEvent::Released(subnet, revision)));
    }

    /// Has the config read again; the watch covers changes after this revision.
    fn notify_config(&mut self, revision: u64) {
        self.config = Some(revision);
        self.store.config_changes.notify();
    }

    fn schedule_audit(&mut self) {
        let spread = 0.75 + fastrand::f64() / 2.0;
        self.audit = self.store.audit.map(|interval| Instant::now() + interval.mul_f64(spread));
    }

    async fn open(&mut self, known: Position) -> WatchState {
        let epoch = self.store.cluster.epoch.current();
        let store = Arc::clone(&self.store);
        let keys = &store.keys;
        let options = WatchOptions::new()
            .with_range(keys.subnets_end())
            .with_start_revision(known.signed_revision().saturating_add(1))
            .with_progress_notify();
        let call = store.cluster.call(CallKind::Watch, |mut connection| {
            let options = options.clone();
            async move {
                let mut stream = connection.watch.watch(keys.subnets(), Some(options)).await?;
                let first = stream.message().await?;
                check_permitted(first.as_ref())?;
                Ok((stream, first))
            }
        });
        let response = match call.await {
            Ok(response) => response,
            Err(error) => return self.fail(error, WatchState::Opening(known)),
        };
        let (stream, first) = response.value;
        let id = first.as_ref().map_or(0, WatchResponse::watch_id);
        let member = response.member;
        let mut subscription = Box::new(Subscription {
            stream,
            id,
            member,
            epoch,
            progress_requested: false,
            checked_revision: None,
            checked_leases: None,
            missed: false,
        });
        if self.config.is_none() {
            self.notify_config(known.revision);
        }
        self.watch_config(&mut subscription).await;
        match first {
            Some(first) => self.apply(react(known, WatchNotice::read(keys, &first)), known, subscription),
            None => self.broken("the watch ended at once", known, &subscription),
        }
    }

    /// Watches the config on the same stream, without another call.
    async fn watch_config(&self, subscription: &mut Subscription) {
        let start =
            Position::after(Revision(self.config.unwrap_or_default())).signed_revision().saturating_add(1);
        let options = WatchOptions::new().with_start_revision(start);
        // A broken stream reports its error where it is read.
        let _ = subscription.stream.watch(self.store.keys.config(), Some(options)).await;
    }

    /// Handles a response of the watch of the config.
    async fn take_config_response(
        &mut self,
        known: Position,
        subscription: &mut Subscription,
        response: &WatchResponse,
    ) {
        let compacted = unsigned(response.compact_revision());
        if compacted > 0 {
            self.notify_config(known.revision.max(compacted));
            self.watch_config(subscription).await;
        } else if response.canceled() {
            tracing::debug!(
                reason = response.cancel_reason(),
                "etcd canceled the watch of the network config"
            );
        }
        let changes = response.events().iter().filter_map(etcd_client::Event::kv);
        if let Some(last) = changes.map(|record| revision(record).0).max() {
            self.notify_config(last);
        }
    }

    async fn follow(&mut self, known: Position, mut subscription: Box<Subscription>) -> WatchState {
        let patience = self.store.silence / CHECKS;
        let to_audit = self.audit.map(|due| due.saturating_duration_since(Instant::now()));
        if to_audit == Some(Duration::ZERO) {
            return self.audit(known, subscription).await;
        }
        let message = timeout(patience.min(to_audit.unwrap_or(patience)), subscription.stream.message());
        let message = tokio::select! {
            biased;
            message = message => message,
            () = self.store.cluster.epoch.ended(subscription.epoch) => return WatchState::Opening(known),
        };
        match message {
            Err(_) if to_audit.is_some_and(|left| left < patience) => {
                WatchState::Following(known, subscription)
            }
            Ok(Ok(Some(response))) => {
                subscription.progress_requested = false;
                (subscription.checked_leases, subscription.missed) = (None, false);
                self.queue.reset_backoff();
                if subscription.is_of_config(&response) {
                    self.store.cluster.contact.record();
                    self.take_config_response(known, &mut subscription, &response).await;
                    return WatchState::Following(known, subscription);
                }
                let notice = WatchNotice::read(&self.store.keys, &response);
                self.apply(react(known, notice), known, subscription)
            }
            Ok(Ok(None)) => self.broken("etcd closed the watch", known, &subscription),
            Ok(Err(error)) => {
                let url = self.store.cluster.endpoints.url(subscription.member);
                let reason = call_error(&error, url).into_reason().to_string();
                self.broken(&reason, known, &subscription)
            }
            Err(_) if subscription.progress_requested => self.check_member(known, subscription).await,
            Err(_) => {
                subscription.progress_requested = true;
                match subscription.stream.request_progress().await {
                    Ok(()) => WatchState::Following(known, subscription),
                    Err(_) => self.broken("cannot send a progress request", known, &subscription),
                }
            }
        }
    }

    /// Checks with reads, on the connection of a silent watch, whether its member answers and withholds no events.
    async fn check_member(&mut self, known: Position, mut subscription: Box<Subscription>) -> WatchState {
        let config = GetOptions::new().with_count_only();
        let response = match self.read(&subscription, self.store.keys.config(), config).await {
            Ok(response) => response,
            Err(error) => return self.silent(&error.into_reason().to_string(), known, &subscription),
        };
        let member = response.header().map(Position::of).unwrap_or(known);
        if !known.can_continue_at(&member) {
            let reason = format!("the store was replaced or went back to revision {}", member.revision);
            return self.apply(WatchAction::Relist(reason), known, subscription);
        }
        if subscription.checked_revision != Some(member.revision) {
            // Something was written, perhaps to keys of others.
            let written = GetOptions::new()
                .with_range(self.store.keys.subnets_end())
                .with_min_mod_revision(known.signed_revision().saturating_add(1))
                .with_keys_only()
                .with_limit(1);
            let response = match self.read(&subscription, self.store.keys.subnets(), written).await {
                Ok(response) => response,
                Err(error) => return self.silent(&error.into_reason().to_string(), known, &subscription),
            };
            let leases = response.count();
            let is_missed = !response.kvs().is_empty()
                || subscription.checked_leases.is_some_and(|checked| leases < checked);
            if is_missed && mem::replace(&mut subscription.missed, true) {
                return self.silent("its member withholds events", known, &subscription);
            }
            if !is_missed {
                subscription.checked_revision = Some(member.revision);
                subscription.checked_leases = Some(leases);
            }
        }
        self.apply(WatchAction::Continue(known, Vec::new()), known, subscription)
    }

    async fn read(
        &self,
        subscription: &Subscription,
        key: &str,
        options: GetOptions,
    ) -> Result<GetResponse, CallError> {
        let cluster = &self.store.cluster;
        cluster.counters.count(CallKind::Range);
        let read = |mut connection: Connection| {
            let options = options.clone();
            async move { connection.kv.get(key, Some(options)).await }
        };
        cluster.call_member(subscription.member, &read).await
    }

    fn silent(&mut self, reason: &str, known: Position, subscription: &Subscription) -> WatchState {
        self.broken(&format!("the watch is silent: {reason}"), known, subscription)
    }

    fn apply(&mut self, action: WatchAction, known: Position, subscription: Box<Subscription>) -> WatchState {
        match action {
            WatchAction::Continue(position, events) => {
                self.queue.available();
                let events: Vec<_> =
                    events.into_iter().filter(|event| !self.is_repeated_removal(event)).collect();
                self.queue.push(events);
                self.store.cluster.contact.record_at(position.revision);
                WatchState::Following(position, subscription)
            }
            WatchAction::Relist(reason) => {
                tracing::debug!(%reason, "reading all leases again");
                self.store.cluster.endpoints.skip(subscription.member);
                self.queue.back_off();
                WatchState::Listing
            }
            WatchAction::Reopen(reason) => self.broken(&reason, known, &subscription),
        }
    }

    /// Reports whether an event is the removal that follows a release.
    fn is_repeated_removal(&mut self, event: &RegistryEvent) -> bool {
        match event {
            RegistryEvent::Released(subnet, _) => {
                self.released.insert(*subnet);
                false
            }
            RegistryEvent::Put(lease) => {
                self.released.remove(&lease.subnet);
                false
            }
            RegistryEvent::Deleted(subnet, _) => self.released.remove(subnet),
            // Its removal is one that must be yielded.
            RegistryEvent::Bad(record) => {
                if let Some(subnet) = record.subnet {
                    self.released.remove(&subnet);
                }
                false
            }
            RegistryEvent::Snapshot(_)
            | RegistryEvent::BadDeleted(_)
            | RegistryEvent::Unavailable(_)
            | RegistryEvent::Available => false,
        }
    }

    /// Moves on from the member that served the watch.
    fn broken(&mut self, reason: &str, known: Position, subscription: &Subscription) -> WatchState {
        self.store.cluster.endpoints.skip(subscription.member);
        let error = CallError::NoAnswer(reason.to_owned().into());
        self.fail(error, WatchState::Opening(known))
    }

    /// Continues with `state` after a pause.
    fn fail(&mut self, error: CallError, state: WatchState) -> WatchState {
        self.queue.unavailable(&error.into_reason());
        state
    }
}

/// Turns a cancellation for missing permissions into an error, like that of any other call.
///
/// etcd accepts a watch with an unknown token, or of a user who may not watch, and cancels it at once. Up to 3.5 the
/// reason is `permission denied` in both cases.
fn check_permitted(first: Option<&WatchResponse>) -> Result<(), etcd_client::Error> {
    let reason = first.filter(|first| first.canceled()).map_or("", |first| first.cancel_reason());
    let causes = ["permission denied", "auth token", "auth store", "user name is empty"];
    match causes.iter().any(|words| reason.contains(words)) {
        true => Err(Status::unauthenticated(reason).into()),
        false => Ok(()),
    }
}
