//! Promises 1 to 4 and 6: what a sync writes, and what it leaves alone.

use flannel_core::Dirty;

use super::BackendSubject;
use super::run::{Run, address_of, only};
use crate::contract::{missing_hook, subnet};

/// Promise 1: after a sync the host reaches the current peers at their addresses, and no others.
pub fn host_matches_the_peer_set(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3, 4]);
    // One peer moves, one leaves, one joins.
    run.move_peer(3);
    run.remove_peer(4);
    run.put_peers(&[5]);
    run.sync(&Dirty::All);
    run.assert_converged();
    run.assert_idle();
    (2..=5).for_each(|n| run.remove_peer(n));
    run.sync(&Dirty::All);
    run.assert_converged();
}

/// Promise 3: a dirty hint that names every changed peer is equivalent to [`Dirty::All`].
pub fn dirty_hint_is_sufficient(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3, 4]);
    run.move_peer(3);
    run.remove_peer(4);
    run.put_peers(&[5]);
    run.sync(&only(&[3, 4, 5]));
    run.assert_converged();
    run.assert_idle();
}

/// Promise 2: a sync of a converged host writes nothing, whatever the dirty hint.
pub fn sync_without_changes_writes_nothing(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3, 4]);
    run.assert_idle();
    let before = sorted_objects(subject);
    run.assert_idle();
    assert_eq!(sorted_objects(subject), before, "an idle sync must leave the host unchanged");
    run.assert_converged();
}

/// Promise 2: a restart adopts the correct objects of the earlier run without a write.
///
/// A backend that does not adopt must recreate them.
pub fn restart_adopts_existing_objects(subject: &dyn BackendSubject) {
    let run = Run::with_peers(subject, &[2, 3, 4]);
    let before = sorted_objects(subject);
    let mut run = run.restart();
    run.put_peers(&[2, 3, 4]);
    run.peers.complete();
    let report = run.sync(&Dirty::All);
    if subject.adopts() {
        let writes = (report.written, report.removed, report.failed);
        assert_eq!(
            writes,
            (0, 0, vec![]),
            "the first sync after a restart must write, remove and fail to write nothing"
        );
    }
    run.assert_converged();
    assert_eq!(sorted_objects(subject), before, "the host must hold the same objects after a restart");
    run.assert_idle();
}

/// Promise 4: nothing is removed until the peer set is complete; then stale objects go.
pub fn nothing_is_removed_before_peers_are_complete(subject: &dyn BackendSubject) {
    if !subject.adopts() {
        missing_hook("adopts");
    }
    let run = Run::with_peers(subject, &[2, 3]);
    let before = subject.peer_destinations();
    let mut run = run.restart();
    for known in [&[][..], &[2]] {
        run.put_peers(known);
        for dirty in [only(known), Dirty::All] {
            assert_eq!(
                run.sync(&dirty).removed,
                0,
                "a sync must remove nothing while only the peers {known:?} are known"
            );
            assert_eq!(
                subject.peer_destinations(),
                before,
                "the host must keep its peers while only the peers {known:?} are known"
            );
        }
    }
    run.peers.complete();
    run.sync(&Dirty::NONE);
    run.assert_converged();
}

/// Promise 6: objects that the backend did not create stay unchanged throughout.
pub fn foreign_objects_are_unchanged(subject: &dyn BackendSubject) {
    let own_host = sorted_objects(subject);
    subject.add_foreign_objects();
    let foreign = sorted_objects(subject);
    if foreign == own_host {
        missing_hook("add_foreign_objects");
    }
    let assert_unchanged = |when: &str| {
        let now = sorted_objects(subject);
        let lost: Vec<_> = foreign.iter().filter(|object| !now.contains(object)).collect();
        assert!(lost.is_empty(), "foreign objects must be unchanged {when}, lost {lost:?}");
    };
    let mut run = Run::start(subject);
    assert_unchanged("after the start");
    run.put_peers(&[2, 3]);
    run.peers.complete();
    run.sync(&Dirty::All);
    run.assert_converged();
    assert_unchanged("after peers joined");
    run.remove_peer(2);
    run.move_peer(3);
    run.sync(&Dirty::All);
    run.assert_converged();
    assert_unchanged("after peers left");
    let mut run = run.restart();
    run.peers.complete();
    run.sync(&Dirty::All);
    assert_unchanged("after a restart");
    run.backend.remove().expect("remove must succeed");
    assert_unchanged("after remove");
}

/// Promise 5: every report names an unreachable peer until it leaves, and other peers are not affected.
pub fn unreachable_peer_is_reported_in_every_sync(subject: &dyn BackendSubject) {
    let unreachable =
        |n| subject.unreachable_peer(address_of(n)).unwrap_or_else(|| missing_hook("unreachable_peer"));
    let mut run = Run::with_peers(subject, &[2]);
    run.put_peer(3, unreachable(3));
    run.put_peers(&[4]);
    for dirty in [only(&[3, 4]), Dirty::NONE, only(&[2]), Dirty::All] {
        let report = run.sync(&dirty);
        let named: Vec<_> = report.unreachable.iter().map(|failure| failure.peer).collect();
        assert_eq!(named, [subnet(3)], "the report of a sync with {dirty:?} must name the unreachable peer");
        assert!(!report.unreachable[0].reason.is_empty(), "an unreachable peer must have a reason");
        run.assert_converged_without(3);
    }
    run.remove_peer(3);
    assert_eq!(
        run.sync(&only(&[3])).unreachable,
        [],
        "the report must name no unreachable peer after that peer left"
    );
    run.put_peer(4, unreachable(4));
    assert_eq!(
        run.sync(&only(&[4])).unreachable.len(),
        1,
        "the report must name a peer that became unreachable"
    );
    run.assert_converged_without(4);
}

/// Traffic counters cover the current peers only.
pub fn traffic_is_counted_for_current_peers(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let Some(traffic) = run.backend.traffic() else { missing_hook("traffic") };
    run.remove_peer(3);
    run.sync(&Dirty::All);
    run.assert_converged();
    let counted: Vec<_> = traffic.by_peer().into_keys().collect();
    assert!(
        counted.iter().all(|peer| *peer == subnet(2)),
        "traffic must be counted for current peers only, got {counted:?}"
    );
    // The counters outlive the backend.
    drop(run);
    let _ = (traffic.total(), traffic.by_peer());
}

/// Returns the objects on the host, sorted.
pub(super) fn sorted_objects(subject: &dyn BackendSubject) -> Vec<String> {
    let mut objects = subject.objects();
    objects.sort();
    objects
}
