//! Promises 1 and 5: what fails, and what somebody undoes.

use std::time::{Duration, Instant};

use flannel_core::{Dirty, SyncReport};
use futures::FutureExt;

use super::BackendSubject;
use super::run::Run;
use crate::contract::subnet;

/// Promise 5: an object that cannot be written delays no other one, and is named with the peer that waits for it.
///
/// Checks nothing if nothing can be made to fail.
pub fn an_object_that_cannot_be_written_delays_no_other(subject: &dyn BackendSubject) {
    if !subject.block(subnet(3)) {
        return;
    }
    let mut run = Run::start(subject);
    run.learn(&[2, 3, 4]);
    run.peers.complete();
    run.pass(&Dirty::All);
    run.is_right_without(3);
    is_reported(&failing(&mut run));
    // Others come and go meanwhile, and it is in every report.
    run.learn(&[5]);
    run.forget(2);
    is_reported(&run.pass(&Dirty::All));
    run.is_right_without(3);
    run.forget(3);
    run.pass(&Dirty::All);
    run.is_right();
    run.is_at_rest();
}

/// Promise 5: what failed is tried again when the report says, not before, after growing pauses, until it succeeds.
///
/// Checks nothing if nothing can be made to fail.
pub fn what_failed_is_tried_again_with_growing_pauses(subject: &dyn BackendSubject) {
    if !subject.block(subnet(3)) {
        return;
    }
    let mut run = Run::start(subject);
    run.learn(&[2, 3]);
    run.peers.complete();
    run.pass(&Dirty::All);
    run.is_right_without(3);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let pause = failing(&mut run).retry_in.expect("the report says when it is tried again");
        pauses.push(pause);
        run.now += pause;
        run.pass(&Dirty::NONE);
    }
    assert!(pauses.is_sorted() && pauses[4] >= pauses[0] * 2, "the pauses do not grow: {pauses:?}");

    let pause = failing(&mut run).retry_in.expect("the report says when it is tried again");
    subject.unblock(subnet(3));
    run.now += pause;
    run.pass(&Dirty::NONE);
    run.is_right();
    run.is_at_rest();
}

/// `wait_for_drift` tells when somebody undoes what the backend made, though it was not listened to at that moment, and the
/// next pass makes it again.
///
/// Checks nothing if nothing can be undone.
pub fn what_somebody_undoes_is_noticed_and_made_again(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    for n in [2, 3, 2] {
        // What it did itself it may look at once more.
        while run.noticed(Duration::from_millis(200)).is_some() {
            let report = run.pass(&Dirty::NONE);
            assert_eq!((report.written, report.removed), (0, 0), "what the backend did itself is no change");
        }
        {
            // Whoever waits turns to something else just when it happens.
            let _within = run.runtime.enter();
            let mut waiting = run.backend.wait_for_drift();
            assert!((&mut waiting).now_or_never().is_none(), "there is nothing to notice");
            if !subject.undo(subnet(n)) {
                return;
            }
        }
        assert!(!subject.peer_destinations().contains_key(&subnet(n)), "it was not undone");
        let limit = subject.drift_timeout();
        let deadline = Instant::now() + limit;
        let mut healed = SyncReport::default();
        while healed.written == 0 {
            assert!(Instant::now() < deadline, "what was undone for peer {n} is not made again");
            let what = run.noticed(limit);
            assert!(what.is_some_and(|what| !what.is_empty()), "what was undone for peer {n} is not noticed");
            healed.merge(run.pass(&Dirty::NONE));
        }
        assert!(healed.drifted > 0, "the report does not say that anything had changed: {healed:?}");
        run.is_right();
    }
}

/// The report of the next pass that tells of a failure, and when it is tried again.
fn failing(run: &mut Run<'_>) -> SyncReport {
    let deadline = Instant::now() + run.subject.patience();
    let mut report = run.pass(&Dirty::NONE);
    while (report.failed.is_empty() || report.retry_in.is_none()) && Instant::now() < deadline {
        run.noticed(Duration::from_millis(50));
        report = run.pass(&Dirty::NONE);
    }
    report
}

#[track_caller]
fn is_reported(report: &SyncReport) {
    assert_eq!(report.failed.len(), 1, "the objects that failed: {:?}", report.failed);
    let failure = &report.failed[0];
    assert!(
        !failure.object.is_empty() && !failure.reason.is_empty(),
        "says what failed, and why: {failure:?}"
    );
    let waiting: Vec<_> = report.pending.iter().map(|failure| failure.peer).collect();
    assert_eq!(waiting, [subnet(3)], "the peers that wait for it");
    assert!(report.retry_in.is_some(), "the report does not say when it is tried again");
}
