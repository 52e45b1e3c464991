//! Promises 7 to 9: open, reconfigure, drop and remove.

use flannel_core::{BackendError, Dirty, Lease, NetworkConfig, OpenRequest, PeerSet, Plan, PlanRequest};

use super::BackendSubject;
use super::peers::sorted_objects;
use super::run::{Run, address_of};
use crate::contract::{missing_hook, subnet};

/// Promise 8: attributes and MTU stay the same while peers come and go, over a restart, and when the host is set up
/// again with its earlier attributes; the MTU fits the external interface.
pub fn attributes_and_mtu_are_stable(subject: &dyn BackendSubject) {
    let facts = |run: &Run<'_>| (run.backend.attrs(), run.backend.mtu());
    let run = Run::with_peers(subject, &[2, 3]);
    let first = facts(&run);
    let interface_mtu = subject.external().mtu;
    assert!(
        (1..=interface_mtu).contains(&first.1),
        "the backend's MTU must not exceed the external interface's {interface_mtu}, got {}",
        first.1
    );
    let mut run = run.restart();
    assert_eq!(facts(&run), first, "attributes and MTU must be the same after a restart");
    run.backend.remove().expect("remove must succeed");
    let before = run.own.attrs.clone();
    drop(run);
    let run = Run::start_after(subject, Some(&before));
    assert_eq!(
        facts(&run),
        first,
        "attributes and MTU must be the same after remove and an open with the earlier attributes"
    );
}

/// Returns a config with this value of `Backend`.
fn network(options: &str) -> NetworkConfig {
    let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{options}}}"#);
    NetworkConfig::parse(&text).expect("the config must be valid apart from the backend's options")
}

/// Asserts that a call failed with an error that names the invalid option.
#[track_caller]
fn assert_names_option<T>(outcome: Result<T, BackendError>, options: &str, name: &str) {
    match outcome.map(drop) {
        Err(BackendError::Config { reason, .. }) => {
            assert!(
                reason.contains(name),
                "the error for {options} must name the option {name}, got {reason:?}"
            );
        }
        other => assert_eq!(
            format!("{other:?}"),
            "Err(Config { .. })",
            "{options} must be rejected with BackendError::Config"
        ),
    }
}

/// Returns the subject's invalid options.
#[track_caller]
fn invalid_options(subject: &dyn BackendSubject) -> Vec<(&'static str, &'static str)> {
    let invalid = subject.invalid_options();
    if invalid.is_empty() {
        missing_hook("invalid_options");
    }
    invalid
}

/// Promise 9: `open` names an invalid option and creates nothing.
pub fn invalid_option_is_named(subject: &dyn BackendSubject) {
    let (external, state_dir) = (subject.external(), subject.state_dir());
    let before = sorted_objects(subject);
    for (options, name) in invalid_options(subject) {
        let config = network(options);
        let request = OpenRequest::new(&config, &external).with_state_dir(state_dir.as_deref());
        assert_names_option(subject.opener().open(request), options, name);
        assert_eq!(sorted_objects(subject), before, "open with {options} must leave the host unchanged");
    }
}

/// `update_interface`: the backend returns the new MTU at once, and the next sync applies it to the host.
pub fn update_interface_applies_a_new_mtu(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let (before, usual) = (run.backend.mtu(), subject.external());
    let mut smaller = usual.clone();
    smaller.mtu -= 100;
    for (external, mtu) in [(smaller, before - 100), (usual, before)] {
        run.backend
            .update_interface(&external)
            .expect("the backend must accept the same interface with another MTU");
        assert_eq!(run.backend.mtu(), mtu, "the backend's MTU must follow the interface's {}", external.mtu);
        run.sync(&Dirty::NONE);
        run.assert_converged();
        run.assert_idle();
        let devices = run.backend.devices();
        assert!(
            devices.iter().all(|device| device.mtu == mtu),
            "each device must have an MTU of {mtu}, got {devices:?}"
        );
    }
}

/// `configure`: the host reaches its peers after its lease moved to another subnet.
pub fn configure_applies_a_new_lease(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let before = sorted_objects(subject);
    for own in [subnet(77), subnet(1)] {
        run.own = Lease { subnet: own, ..run.own.clone() };
        run.backend.configure(&run.own).expect("configure must accept another subnet");
        run.sync(&Dirty::All);
        run.assert_converged();
        run.assert_idle();
    }
    assert_eq!(
        sorted_objects(subject),
        before,
        "the host must hold the same objects after its lease moved to another subnet and back"
    );
}

/// `reconfigure`: the host becomes what a start with the other options would make it, and back.
pub fn reconfigure_applies_new_options(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let first = sorted_objects(subject);
    let others: Vec<_> = subject.other_options().into_iter().map(network).collect();
    if others.is_empty() {
        missing_hook("other_options");
    }
    for config in others.into_iter().flat_map(|other| [other, subject.config()]) {
        let options = config.backend.options.as_str().to_owned();
        let outcome = run.reconfigure(config);
        assert!(outcome.is_ok(), "reconfigure to {options} must succeed without a restart, got {outcome:?}");
        run.sync(&Dirty::All);
        run.assert_converged();
        run.assert_idle();
        if subject.adopts() {
            let (peers, objects) = (run.peers.clone(), sorted_objects(subject));
            run = run.restart();
            run.peers = peers;
            run.sync(&Dirty::All);
            assert_eq!(
                objects,
                sorted_objects(subject),
                "reconfigure to {options} (left) must give the objects that a start with it gives (right)"
            );
        }
    }
    assert_eq!(
        sorted_objects(subject),
        first,
        "the host must hold the same objects after other options and back"
    );
}

/// `reconfigure` with an invalid option names it and changes nothing.
pub fn reconfigure_with_invalid_options_changes_nothing(subject: &dyn BackendSubject) {
    let mut run = Run::with_peers(subject, &[2, 3]);
    let facts = |run: &Run<'_>| (run.backend.attrs(), run.backend.mtu());
    let (before, objects) = (facts(&run), sorted_objects(subject));
    for (options, name) in invalid_options(subject) {
        let outcome = run.reconfigure(network(options));
        // A backend that needs a restart for every change may return that error.
        if subject.other_options().is_empty() {
            assert!(outcome.is_err(), "reconfigure must reject {options}");
        } else {
            assert_names_option(outcome, options, name);
        }
        assert_eq!(facts(&run), before, "attributes and MTU must be unchanged after a rejected {options}");
        assert_eq!(sorted_objects(subject), objects, "the host must be unchanged after a rejected {options}");
        run.assert_converged();
        run.assert_idle();
    }
}

/// Promise 7: dropping a backend changes nothing on the host.
pub fn drop_keeps_everything(subject: &dyn BackendSubject) {
    if !subject.adopts() {
        missing_hook("adopts");
    }
    let run = Run::with_peers(subject, &[2, 3]);
    let (destinations, objects) = (subject.peer_destinations(), sorted_objects(subject));
    drop(run);
    assert_eq!(
        subject.peer_destinations(),
        destinations,
        "the host must reach its peers without the backend"
    );
    assert_eq!(sorted_objects(subject), objects, "the host must keep its objects without the backend");
}

/// `remove` deletes everything that the backend created, including what an earlier run left.
pub fn remove_leaves_nothing(subject: &dyn BackendSubject) {
    let before = sorted_objects(subject);
    let run = Run::with_peers(subject, &[2, 3]);
    let mut run = if subject.adopts() { run.restart() } else { run };
    run.backend.remove().expect("remove must succeed");
    drop(run);
    assert_eq!(
        sorted_objects(subject),
        before,
        "remove must leave the host (left) as it was before the start (right)"
    );
    let destinations = subject.peer_destinations();
    assert!(destinations.is_empty(), "the host must reach no peer after remove, got {destinations:?}");
}

/// `plan` writes nothing, names unreachable peers, and is empty after a sync.
pub fn plan_writes_nothing_and_is_accurate(subject: &dyn BackendSubject) {
    let (config, external, state_dir) = (subject.config(), subject.external(), subject.state_dir());
    let plan = |own: &Lease, peers: &PeerSet| {
        let request = PlanRequest::new(&config, &external, own, peers).with_state_dir(state_dir.as_deref());
        subject.opener().plan(request)
    };
    let before = sorted_objects(subject);
    let unreachable_peer = subject.unreachable_peer(address_of(4));
    let mut run = Run::start(subject);
    run.put_peers(&[2, 3]);
    let unreachable_peers = usize::from(unreachable_peer.is_some());
    unreachable_peer.into_iter().for_each(|attrs| run.put_peer(4, attrs));
    run.peers.complete();
    run.backend.remove().expect("remove must succeed");
    let (own, peers) = (run.own.clone(), run.peers.clone());
    drop(run);

    let Ok(Plan { changes, unreachable, .. }) = plan(&own, &peers) else { missing_hook("plan") };
    assert_eq!(sorted_objects(subject), before, "plan must leave the host unchanged");
    assert_eq!(
        changes.is_empty(),
        !subject.carries_traffic(),
        "plan must list changes for an empty host exactly if the backend carries traffic, got {changes:?}"
    );
    assert_eq!(
        unreachable.len(),
        unreachable_peers,
        "plan must name every unreachable peer, got {unreachable:?}"
    );

    let mut run = Run::start_after(subject, Some(&own.attrs));
    run.peers = peers;
    run.sync(&Dirty::All);
    if subject.adopts() {
        let left = plan(&own, &run.peers).expect("plan must succeed while the backend runs").changes;
        assert_eq!(left, [], "plan must be empty for a converged host");
    }
}

/// `devices`: each device exists under its name, with the MTU that containers may use.
pub fn devices_are_described_accurately(subject: &dyn BackendSubject) {
    let run = Run::with_peers(subject, &[2]);
    let objects = sorted_objects(subject);
    let devices = run.backend.devices();
    if devices.is_empty() {
        missing_hook("devices");
    }
    for device in devices {
        assert!(
            !device.name.is_empty() && !device.kind.is_empty(),
            "a device must have a name and a kind, got {device:?}"
        );
        assert_eq!(device.mtu, run.backend.mtu(), "device {} must have the backend's MTU", device.name);
        let exists = objects.iter().any(|object| object.contains(&device.name));
        assert!(exists, "device {} must exist on the host, got {objects:?}", device.name);
    }
}
