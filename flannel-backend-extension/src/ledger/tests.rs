#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn subnet(n: u8) -> SubnetKey {
    format!("10.5.{n}.0-24").parse().unwrap()
}

fn input(public: &str) -> CommandInput {
    CommandInput { variables: vec![("PUBLIC_IP", public.to_owned())], stdin: "\n".to_owned() }
}

/// Summarizes the jobs that are due.
fn due(ledger: &Ledger, now: Instant) -> Vec<String> {
    let short = |job: &Job| format!("{:?} {} {}", job.task, job.subnet, job.input.variables[0].1);
    ledger.due(now).iter().map(short).collect()
}

/// Runs jobs until none is due.
fn run_all(ledger: &mut Ledger, now: Instant) -> Vec<String> {
    let mut ran = Vec::new();
    while let Some(job) = ledger.due(now).into_iter().next() {
        ran.push(format!("{:?} {} {}", job.task, job.subnet, job.input.variables[0].1));
        ledger.ended(job, Ok(()), now);
    }
    ran
}

#[test]
fn a_peer_is_added_once_and_removed_with_the_same_input() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    ledger.set_desired(subnet(1), Some(input("a")));
    ledger.set_desired(subnet(2), Some(input("b")));
    assert_eq!(run_all(&mut ledger, now), ["Add 10.5.1.0-24 a", "Add 10.5.2.0-24 b"]);
    ledger.set_desired(subnet(1), Some(input("a")));
    assert_eq!(run_all(&mut ledger, now), [""; 0]);
    ledger.retain(&[subnet(2)].into());
    assert_eq!(run_all(&mut ledger, now), ["Remove 10.5.1.0-24 a"]);
    assert_eq!(ledger.0.len(), 1, "the ledger drops a peer that left");
}

#[test]
fn a_changed_peer_is_removed_with_the_old_input_and_added_with_the_new() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    ledger.set_desired(subnet(1), Some(input("a")));
    run_all(&mut ledger, now);
    ledger.set_desired(subnet(1), Some(input("b")));
    assert_eq!(run_all(&mut ledger, now), ["Remove 10.5.1.0-24 a", "Add 10.5.1.0-24 b"]);
}

#[test]
fn removals_run_before_additions() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    ledger.set_desired(subnet(9), Some(input("a")));
    run_all(&mut ledger, now);
    ledger.set_desired(subnet(9), None);
    ledger.set_desired(subnet(1), Some(input("a")));
    assert_eq!(due(&ledger, now), ["Remove 10.5.9.0-24 a", "Add 10.5.1.0-24 a"]);
}

#[test]
fn a_failed_command_backs_off_and_delays_no_other() {
    let (mut ledger, mut now) = (Ledger::default(), Instant::now());
    ledger.set_desired(subnet(1), Some(input("a")));
    ledger.set_desired(subnet(2), Some(input("b")));
    for pause in [1, 2, 4] {
        let job = ledger.due(now).into_iter().next().unwrap();
        assert_eq!(job.subnet, subnet(1));
        assert_eq!(ledger.ended(job, Err("exit status: 2".to_owned()), now), None);
        assert_eq!(due(&ledger, now), ["Add 10.5.2.0-24 b"]);
        assert_eq!(ledger.retry_in(now), Some(Duration::from_secs(pause)));
        now += Duration::from_secs(pause);
        assert_eq!(ledger.retry_in(now), None, "a due command needs no timer");
    }
    let failed = ledger.failed();
    assert_eq!(failed[0].object, "SubnetAddCommand for 10.5.1.0/24");
    assert_eq!(failed[0].reason, "exit status: 2");
    assert_eq!(ledger.pending()[0].to_string(), "peer 10.5.1.0-24: SubnetAddCommand: exit status: 2");
    assert_eq!(run_all(&mut ledger, now).len(), 2);
    assert_eq!((ledger.failed(), ledger.retry_in(now)), (Vec::new(), None));
}

#[test]
fn a_removal_is_abandoned_after_three_attempts_or_at_once_if_the_peer_changed() {
    let (mut ledger, mut now) = (Ledger::default(), Instant::now());
    for n in [1, 2] {
        ledger.set_desired(subnet(n), Some(input("a")));
    }
    run_all(&mut ledger, now);
    ledger.set_desired(subnet(1), None);
    ledger.set_desired(subnet(2), Some(input("b")));
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        for job in ledger.due(now).into_iter().filter(|job| job.task == Task::Remove) {
            let key = job.subnet;
            outcomes.push((key, ledger.ended(job, Err("no such route".to_owned()), now).is_some()));
        }
        now += Duration::from_secs(10);
    }
    let (left, changed) = (subnet(1), subnet(2));
    assert_eq!(outcomes, [(left, false), (changed, true), (left, false), (left, true)]);
    assert_eq!(due(&ledger, now), ["Add 10.5.2.0-24 b"]);
}

#[test]
fn a_peer_that_leaves_while_its_command_runs_is_removed_afterwards() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    ledger.set_desired(subnet(1), Some(input("a")));
    let job = ledger.due(now).into_iter().next().unwrap();
    ledger.set_desired(subnet(1), None);
    assert_eq!(due(&ledger, now), [""; 0]);
    ledger.ended(job, Err("half of it".to_owned()), now);
    assert_eq!(ledger.undo().len(), 1);
    assert_eq!(due(&ledger, now), ["Remove 10.5.1.0-24 a"]);
}
