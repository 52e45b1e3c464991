//! Promises 7 to 9: how a backend begins, moves and ends.

use flannel_core::{BackendError, Dirty, Lease, NetworkConfig, OpenRequest, PeerSet, Plan, PlanRequest};

use super::BackendSubject;
use super::peers::sorted;
use super::run::{Run, home};
use crate::contract::subnet;

/// Promise 8: what the host says stays the same while peers come and go, over a start, and when it begins anew with
/// what it said before; no packet is larger than the interface lets through.
pub fn what_a_host_says_stands(subject: &dyn BackendSubject) {
    let said = |run: &Run<'_>| (run.backend.attrs(), run.backend.mtu());
    let run = Run::with_peers(subject, &[2, 3]);
    let first = said(&run);
    assert!((1..=subject.external().mtu).contains(&first.1), "an MTU of {}", first.1);
    let mut run = run.start_again();
    assert_eq!(said(&run), first, "what the host says after a start");
    run.backend.remove().expect("removes");
    let before = run.own.attrs.clone();
    drop(run);
    let run = Run::start_after(subject, Some(&before));
    assert_eq!(said(&run), first, "what the host says when everything is made anew");
}

/// A configuration whose `Backend` is this.
fn network(options: &str) -> NetworkConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{options}}}"#);
    NetworkConfig::parse(&text).expect("all but the options can be read")
}

/// Checks that an option that cannot be used is what came out.
#[track_caller]
fn names<T>(outcome: Result<T, BackendError>, options: &str, name: &str) {
    match outcome.map(drop) {
        Err(BackendError::Config { reason, .. }) => {
            assert!(reason.contains(name), "{options}: {reason:?} does not name {name}");
        }
        other => assert_eq!(format!("{other:?}"), "Err(Config { .. })", "what came of {options}"),
    }
}

/// Promise 9: an option that cannot be used is named, and nothing is made with it.
pub fn a_wrong_option_is_named(subject: &dyn BackendSubject) {
    let external = subject.external();
    let before = sorted(subject);
    for (options, name) in subject.invalid_options() {
        let config = network(options);
        let request = OpenRequest::new(&config, &external);
        names(subject.opener().open(request), options, name);
        assert_eq!(sorted(subject), before, "the objects on the host after {options}");
    }
}

/// `update_interface`: the host says at once what holds for the interface as it is now, and the next pass makes it so.
pub fn another_mtu_of_the_interface_is_taken_in(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let (before, usual) = (run.backend.mtu(), subject.external());
    let mut smaller = usual.clone();
    smaller.mtu -= 100;
    for (external, mtu) in [(smaller, before - 100), (usual, before)] {
        run.backend.update_interface(&external).expect("the same interface will do");
        assert_eq!(run.backend.mtu(), mtu, "the MTU with one of {} below", external.mtu);
        run.pass(&Dirty::NONE);
        run.is_right();
        run.is_at_rest();
        assert!(run.backend.devices().iter().all(|device| device.mtu == mtu), "{:?}", run.backend.devices());
    }
}

/// `configure`: a host that gets another lease reaches its peers from there.
pub fn another_lease_is_taken_in(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let before = sorted(subject);
    for own in [subnet(77), subnet(1)] {
        run.own = Lease { subnet: own, ..run.own.clone() };
        run.backend.configure(&run.own).expect("the host is made ready for its lease");
        run.pass(&Dirty::All);
        run.is_right();
        run.is_at_rest();
    }
    assert_eq!(sorted(subject), before, "the objects on the host before and after it had another lease");
}

/// `reconfigure`: the host becomes what a start by the other configuration would make of it, and back.
///
/// Checks nothing if the backend cannot come to another configuration.
pub fn another_configuration_is_taken_in(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let first = sorted(subject);
    let others: Vec<_> = subject.other_options().into_iter().map(network).collect();
    for config in others.into_iter().flat_map(|other| [other, subject.config()]) {
        let options = config.backend.options.as_str().to_owned();
        run.reconfigure(config).expect("the backend comes to it without a restart");
        run.pass(&Dirty::All);
        run.is_right();
        run.is_at_rest();
        if subject.adopts() {
            let (peers, objects) = (run.peers.clone(), sorted(subject));
            run = run.start_again();
            run.peers = peers;
            run.pass(&Dirty::All);
            assert_eq!(objects, sorted(subject), "left: come to {options}, right: started with it");
        }
    }
    assert_eq!(
        sorted(subject),
        first,
        "the objects on the host before and after it had other configurations"
    );
}

/// `reconfigure`: an option that cannot be used is named, and everything goes on as it was.
pub fn a_configuration_that_cannot_be_used_changes_nothing(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let said = |run: &Run<'_>| (run.backend.attrs(), run.backend.mtu());
    let (before, objects) = (said(&run), sorted(subject));
    for (options, name) in subject.invalid_options() {
        let outcome = run.reconfigure(network(options));
        // One that takes a restart for every other configuration may say so.
        if subject.other_options().is_empty() {
            assert!(outcome.is_err(), "{options} was taken in");
        } else {
            names(outcome, options, name);
        }
        assert_eq!(said(&run), before, "what the host says after {options}");
        assert_eq!(sorted(subject), objects, "the objects on the host after {options}");
        run.is_right();
        run.is_at_rest();
    }
}

/// Promise 7: to drop a backend changes nothing on the host.
///
/// Checks nothing if nothing outlives the backend.
pub fn dropping_keeps_everything(subject: &dyn BackendSubject) {
    let run = Run::with_peers(subject, &[2, 3]);
    let (reached, objects) = (subject.peer_destinations(), sorted(subject));
    drop(run);
    if subject.adopts() {
        assert_eq!(subject.peer_destinations(), reached, "whom the host reaches without the backend");
        assert_eq!(sorted(subject), objects, "the objects on the host without the backend");
    }
}

/// `remove`: all that the backend made is gone, also what an earlier run left.
pub fn removing_leaves_nothing(subject: &dyn BackendSubject) {
    let before = sorted(subject);
    let run = Run::with_peers(subject, &[2, 3]);
    let mut run = if subject.adopts() { run.start_again() } else { run };
    run.backend.remove().expect("removes");
    drop(run);
    assert_eq!(sorted(subject), before, "the objects on the host after a removal and before the start");
    assert_eq!(subject.peer_destinations().len(), 0, "whom the host reaches");
}

/// `plan`: it writes nothing, names who is not reached, and has nothing left to do after a pass.
///
/// Checks nothing if the backend cannot tell.
pub fn a_plan_writes_nothing_and_is_what_is_then_done(subject: &dyn BackendSubject) {
    let (config, external) = (subject.config(), subject.external());
    let plan = |own: &Lease, peers: &PeerSet| {
        let request = PlanRequest::new(&config, &external, own, peers);
        subject.opener().plan(request)
    };
    let before = sorted(subject);
    let stranger = subject.unreachable_peer(home(4));
    let mut run = Run::start(subject);
    run.learn(&[2, 3]);
    let strangers = usize::from(stranger.is_some());
    stranger.into_iter().for_each(|attrs| run.put(4, attrs));
    run.peers.complete();
    run.backend.remove().expect("removes");
    let (own, peers) = (run.own.clone(), run.peers.clone());
    drop(run);

    let Ok(Plan { changes, unreachable, .. }) = plan(&own, &peers) else { return };
    assert_eq!(sorted(subject), before, "the objects on the host after a plan");
    assert_eq!(
        changes.is_empty(),
        !subject.carries_traffic(),
        "what is planned for a host on which nothing is: {changes:?}"
    );
    assert_eq!(unreachable.len(), strangers, "who will not be reached: {unreachable:?}");

    let mut run = Run::start_after(subject, Some(&own.attrs));
    run.peers = peers;
    run.pass(&Dirty::All);
    if subject.adopts() {
        let left = plan(&own, &run.peers).expect("the backend can tell").changes;
        assert_eq!(left, [], "what is planned for a host that is as it should be");
    }
}

/// `devices`: each is on the host under its name, and lets through what a container may send.
pub fn devices_are_described_as_they_are(subject: &dyn BackendSubject) {
    let run = Run::with_peers(subject, &[2]);
    let objects = sorted(subject);
    for device in run.backend.devices() {
        assert!(!device.name.is_empty() && !device.kind.is_empty(), "{device:?}");
        assert_eq!(device.mtu, run.backend.mtu(), "the MTU of {}", device.name);
        let is_there = objects.iter().any(|object| object.contains(&device.name));
        assert!(is_there, "{} is not among {objects:?}", device.name);
    }
}
