//! Promises 1 to 4 and 6: what a pass makes of the peers, and what it leaves alone.

use flannel_core::Dirty;

use super::BackendSubject;
use super::run::{Run, home, only};
use crate::contract::subnet;

/// Promise 1: after a pass the host reaches the peers that there are, where they live, and nobody else.
pub fn the_host_is_as_it_should_be_for_exactly_these_peers(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3, 4]);
    // One of each: it moves, it leaves, it comes.
    run.learn_moved(3);
    run.forget(4);
    run.learn(&[5]);
    run.pass(&Dirty::All);
    run.is_right();
    run.is_at_rest();
    (2..=5).for_each(|n| run.forget(n));
    run.pass(&Dirty::All);
    run.is_right();
}

/// Promise 3: a hint that names every peer that changed is as good as to look at all.
pub fn a_hint_of_what_changed_is_enough(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3, 4]);
    run.learn_moved(3);
    run.forget(4);
    run.learn(&[5]);
    run.pass(&only(&[3, 4, 5]));
    run.is_right();
    run.is_at_rest();
}

/// Promise 2: a pass that finds everything in order writes nothing, whatever it is told to look at.
pub fn a_pass_that_finds_everything_in_order_writes_nothing(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3, 4]);
    run.is_at_rest();
    let before = sorted(subject);
    run.is_at_rest();
    assert_eq!(sorted(subject), before, "the objects on the host");
    run.is_right();
}

/// Promise 2: what an earlier run left and is right is taken over without a write.
///
/// Where nothing outlives the backend it is made again.
pub fn a_new_start_takes_over_what_is_there(subject: &dyn BackendSubject) {
    let run = Run::with_peers(subject, &[2, 3, 4]);
    let before = sorted(subject);
    let mut run = run.start_again();
    run.learn(&[2, 3, 4]);
    run.peers.complete();
    let report = run.pass(&Dirty::All);
    if subject.adopts() {
        let writes = (report.written, report.removed, report.failed);
        assert_eq!(
            writes,
            (0, 0, vec![]),
            "what the first pass after a start wrote, removed and failed to write"
        );
    }
    run.is_right();
    assert_eq!(sorted(subject), before, "the objects on the host before and after a start");
    run.is_at_rest();
}

/// Promise 4: until all peers are known nothing is removed; then what nobody needs any more goes.
///
/// Checks nothing if nothing outlives the backend.
pub fn nothing_is_removed_before_the_peers_are_complete(subject: &dyn BackendSubject) {
    let run = Run::with_peers(subject, &[2, 3]);
    if !subject.adopts() {
        return;
    }
    let before = subject.peer_destinations();
    let mut run = run.start_again();
    for known in [&[][..], &[2]] {
        run.learn(known);
        for dirty in [only(known), Dirty::All] {
            assert_eq!(run.pass(&dirty).removed, 0, "removed with only the peers {known:?} known");
            assert_eq!(
                subject.peer_destinations(),
                before,
                "whom the host reaches with only the peers {known:?} known"
            );
        }
    }
    run.peers.complete();
    run.pass(&Dirty::NONE);
    run.is_right();
}

/// Promise 6: what the backend did not make stays as it is, whatever comes and goes.
pub fn nothing_foreign_is_touched(subject: &dyn BackendSubject) {
    subject.add_foreign_objects();
    let foreign = sorted(subject);
    let is_untouched = |when: &str| {
        let now = sorted(subject);
        let lost: Vec<_> = foreign.iter().filter(|object| !now.contains(object)).collect();
        assert!(lost.is_empty(), "{when} these foreign objects were touched: {lost:?}");
    };
    let mut run = Run::start(subject);
    is_untouched("at the start");
    run.learn(&[2, 3]);
    run.peers.complete();
    run.pass(&Dirty::All);
    run.is_right();
    is_untouched("when peers came");
    run.forget(2);
    run.learn_moved(3);
    run.pass(&Dirty::All);
    run.is_right();
    is_untouched("when peers left");
    let mut run = run.start_again();
    run.peers.complete();
    run.pass(&Dirty::All);
    is_untouched("when the backend was started again");
    run.backend.remove().expect("removes");
    is_untouched("when everything was removed");
}

/// Promise 5: a peer that the backend cannot reach is named in every report, disturbs no other, and is forgotten when
/// it leaves.
///
/// Checks nothing if the backend reaches everybody.
pub fn a_peer_that_cannot_be_reached_is_named_in_every_pass(subject: &dyn BackendSubject) {
    let Some(stranger) = subject.unreachable_peer(home(3)) else { return };
    let mut run = Run::with_peers(subject, &[2]);
    run.put(3, stranger);
    run.learn(&[4]);
    for dirty in [only(&[3, 4]), Dirty::NONE, only(&[2]), Dirty::All] {
        let report = run.pass(&dirty);
        let named: Vec<_> = report.unreachable.iter().map(|failure| failure.peer).collect();
        assert_eq!(named, [subnet(3)], "the peers that are not reached, after a pass with {dirty:?}");
        assert!(!report.unreachable[0].reason.is_empty(), "a reason is given");
        run.is_right_without(3);
    }
    run.forget(3);
    assert_eq!(run.pass(&only(&[3])).unreachable, [], "the peers that are not reached, after it left");
    run.put(4, subject.unreachable_peer(home(4)).expect("there is such a peer"));
    assert_eq!(run.pass(&only(&[4])).unreachable.len(), 1, "a peer that is reached no longer is named");
    run.is_right_without(4);
}

/// What counts the traffic counts that of peers, and of no others.
///
/// Checks nothing if nothing counts.
pub fn traffic_is_counted_for_peers_only(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let Some(traffic) = run.backend.traffic() else { return };
    run.forget(3);
    run.pass(&Dirty::All);
    run.is_right();
    let counted: Vec<_> = traffic.by_peer().into_keys().collect();
    assert!(counted.iter().all(|peer| *peer == subnet(2)), "traffic is counted for {counted:?}");
    drop(run);
    let _ = (traffic.total(), traffic.by_peer());
}

/// The objects on the host, in order.
pub(super) fn sorted(subject: &dyn BackendSubject) -> Vec<String> {
    let mut objects = subject.objects();
    objects.sort();
    objects
}
