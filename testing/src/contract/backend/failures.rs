//! Promises 1 and 5: failed writes and drift.

use std::time::{Duration, Instant};

use flannel_core::{Dirty, SyncReport};
use futures::FutureExt;

use super::BackendSubject;
use super::run::Run;
use crate::contract::subnet;

/// Promise 5: an object whose write fails does not delay others; the report names it and the peer that waits for it.
pub fn failed_object_does_not_delay_others(subject: &dyn BackendSubject) {
    subject.block(subnet(3));
    let mut run = Run::start(subject);
    run.put_peers(&[2, 3, 4]);
    run.peers.complete();
    run.sync(&Dirty::All);
    run.assert_converged_without(3);
    assert_one_failure(&sync_until_failure(&mut run));
    // The failure stays in the report while other peers come and go.
    run.put_peers(&[5]);
    run.remove_peer(2);
    assert_one_failure(&run.sync(&Dirty::All));
    run.assert_converged_without(3);
    run.remove_peer(3);
    run.sync(&Dirty::All);
    run.assert_converged();
    run.assert_idle();
}

/// Promise 5: a failed write is retried when the report says so, not earlier, at growing intervals, until it succeeds.
pub fn failed_object_is_retried_with_backoff(subject: &dyn BackendSubject) {
    subject.block(subnet(3));
    let mut run = Run::start(subject);
    run.put_peers(&[2, 3]);
    run.peers.complete();
    run.sync(&Dirty::All);
    run.assert_converged_without(3);
    let mut delays = Vec::new();
    for _ in 0..5 {
        let delay =
            sync_until_failure(&mut run).retry_in.expect("the report must set retry_in after a failure");
        delays.push(delay);
        run.now += delay;
        run.sync(&Dirty::NONE);
    }
    assert!(
        delays.is_sorted() && delays[4] >= delays[0] * 2,
        "retry_in must grow while a write keeps failing, got {delays:?}"
    );

    let delay = sync_until_failure(&mut run).retry_in.expect("the report must set retry_in after a failure");
    subject.unblock(subnet(3));
    run.now += delay;
    run.sync(&Dirty::NONE);
    run.assert_converged();
    run.assert_idle();
}

/// `wait_for_drift` resolves after drift that happened while it was not polled, and the next sync repairs the drift.
pub fn drift_is_noticed_and_repaired(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    for n in [2, 3, 2] {
        // The backend may notice its own writes.
        while run.wait_for_drift(Duration::from_millis(200)).is_some() {
            let report = run.sync(&Dirty::NONE);
            assert_eq!(
                (report.written, report.removed),
                (0, 0),
                "a sync after the backend noticed its own writes must write and remove nothing"
            );
        }
        {
            // Drops the future at the moment of the drift.
            let _within = run.runtime.enter();
            let mut waiting = run.backend.wait_for_drift();
            assert!((&mut waiting).now_or_never().is_none(), "wait_for_drift must not resolve without drift");
            subject.undo(subnet(n));
        }
        assert!(
            !subject.peer_destinations().contains_key(&subnet(n)),
            "the subject's `undo` must make peer {n} unreachable"
        );
        let limit = subject.drift_timeout();
        let deadline = Instant::now() + limit;
        let mut repaired = SyncReport::default();
        while repaired.written == 0 {
            assert!(Instant::now() < deadline, "the drift of peer {n} must be repaired within {limit:?}");
            let reason = run.wait_for_drift(limit);
            assert!(
                reason.is_some_and(|reason| !reason.is_empty()),
                "wait_for_drift must resolve with a reason within {limit:?} after the drift of peer {n}"
            );
            repaired.merge(run.sync(&Dirty::NONE));
        }
        assert!(repaired.drifted > 0, "the report must count the drifted objects, got {repaired:?}");
        run.assert_converged();
    }
}

/// Syncs until the report contains a failure and its retry delay.
fn sync_until_failure(run: &mut Run<'_>) -> SyncReport {
    let deadline = Instant::now() + run.subject.patience();
    let mut report = run.sync(&Dirty::NONE);
    while (report.failed.is_empty() || report.retry_in.is_none()) && Instant::now() < deadline {
        run.wait_for_drift(Duration::from_millis(50));
        report = run.sync(&Dirty::NONE);
    }
    report
}

#[track_caller]
fn assert_one_failure(report: &SyncReport) {
    assert_eq!(
        report.failed.len(),
        1,
        "the report must list exactly the blocked object, got {:?}",
        report.failed
    );
    let failure = &report.failed[0];
    assert!(
        !failure.object.is_empty() && !failure.reason.is_empty(),
        "a failure must name its object and reason, got {failure:?}"
    );
    let waiting: Vec<_> = report.pending.iter().map(|failure| failure.peer).collect();
    assert_eq!(waiting, [subnet(3)], "the report must list exactly the blocked peer as pending");
    assert!(report.retry_in.is_some(), "the report must set retry_in while a write fails");
}
