use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::lease::{LeaseAttrs, Revision, Term};

const SECOND: Duration = Duration::from_secs(1);

fn lease(subnet: u8, host: u8) -> Arc<Lease> {
    let attrs = LeaseAttrs::new(std::net::Ipv4Addr::new(192, 168, 0, host).into());
    Arc::new(Lease { subnet: key(subnet), attrs, revision: Revision(1), term: Term::Limited })
}

fn key(subnet: u8) -> SubnetKey {
    format!("10.5.{subnet}.0-24").parse().unwrap()
}

fn put(subnet: u8) -> LeaseChange {
    LeaseChange::Put(lease(subnet, subnet))
}

fn removed(subnet: u8) -> LeaseChange {
    LeaseChange::Removed(key(subnet))
}

fn held(subnet: u8, was_gone: bool) -> PeerChange {
    PeerChange::Held { lease: lease(subnet, subnet), was_gone }
}

fn released(subnet: u8) -> LeaseChange {
    LeaseChange::Released(key(subnet))
}

fn left(subnet: u8) -> PeerChange {
    PeerChange::Left(key(subnet))
}

fn of(peers: u8, now: Instant) -> Damping {
    let mut damping = Damping::new(DampingOptions::default());
    damping.filter((1..=peers).map(put).collect(), now);
    damping
}

#[test]
fn a_single_peer_leaves_at_once() {
    let now = Instant::now();
    for peers in [1, 2, 3, 100] {
        assert_eq!(of(peers, now).filter(vec![removed(1)], now), [left(1)]);
    }
}

#[test]
fn up_to_half_of_the_peers_leave_at_once() {
    let now = Instant::now();
    let mut damping = of(10, now);
    let half: Vec<_> = (1..=5).map(left).collect();
    assert_eq!(damping.filter((1..=5).map(removed).collect(), now), half);
    assert_eq!(damping.due(), None);
}

#[test]
fn peers_that_disappear_together_are_held_and_then_removed() {
    let now = Instant::now();
    let mut damping = of(10, now);
    let all: Vec<_> = (1..=10).map(|subnet| held(subnet, false)).collect();
    assert_eq!(damping.filter((1..=10).map(removed).collect(), now), all);
    assert_eq!((damping.held(), damping.peers().len()), (10, 10));
    let end = damping.due().unwrap();
    assert_eq!(end, now + Duration::from_secs(300));
    assert_eq!(damping.expire(end - SECOND), []);
    assert_eq!(damping.expire(end).len(), 10);
    assert_eq!((damping.held(), damping.peers().len(), damping.due()), (0, 0, None));
}

#[test]
fn peers_that_left_before_the_threshold_are_back_in_use_and_held() {
    let now = Instant::now();
    let mut damping = of(4, now);
    assert_eq!(damping.filter(vec![removed(1)], now), [left(1)]);
    assert_eq!(damping.filter(vec![removed(2)], now + SECOND), [left(2)]);
    assert_eq!(
        damping.filter(vec![removed(3)], now + SECOND * 2),
        [held(1, true), held(2, true), held(3, false)]
    );
    assert_eq!(damping.held(), 3);
}

#[test]
fn departures_outside_the_window_are_not_counted_together() {
    let mut now = Instant::now();
    let mut damping = of(4, now);
    for subnet in 1..=4 {
        assert_eq!(damping.filter(vec![removed(subnet)], now), [left(subnet)]);
        now += SECOND * 10;
    }
}

#[test]
fn a_held_peer_that_reappears_unchanged_is_no_change() {
    let now = Instant::now();
    let mut damping = of(3, now);
    damping.filter(vec![removed(1), removed(2)], now);
    assert_eq!(damping.filter(vec![put(1)], now), []);
    assert_eq!(damping.held(), 1);
    let changed = LeaseChange::Put(lease(2, 9));
    assert_eq!(damping.filter(vec![changed], now), [PeerChange::Changed(lease(2, 9))]);
    assert_eq!((damping.held(), damping.due()), (0, None), "no peer is held any more");
    assert_eq!(damping.filter(vec![removed(3)], now), [left(3)]);
}

#[test]
fn a_host_that_reappears_with_another_subnet_gives_the_held_one_up() {
    let now = Instant::now();
    let mut damping = of(3, now);
    damping.filter(vec![removed(1), removed(2)], now);
    let moved = LeaseChange::Put(lease(7, 1));
    assert_eq!(damping.filter(vec![moved], now), [left(1), PeerChange::Joined(lease(7, 1))]);
    assert_eq!(damping.held(), 1);
}

#[test]
fn hosts_that_moved_to_other_subnets_are_not_held() {
    let now = Instant::now();
    let mut damping = of(4, now);
    let renumbered: Vec<_> = (1..=4).map(|host| LeaseChange::Put(lease(host + 100, host))).collect();
    damping.filter(renumbered, now);
    assert_eq!(damping.filter((1..=4).map(removed).collect(), now).len(), 4);
    assert_eq!(damping.held(), 0);
}

#[test]
fn a_hold_of_zero_disables_damping() {
    let now = Instant::now();
    let options = DampingOptions { hold: Duration::ZERO, ..DampingOptions::default() };
    let mut damping = Damping::new(options);
    damping.filter((1..=10).map(put).collect(), now);
    assert_eq!(damping.filter((1..=10).map(removed).collect(), now).len(), 10);
}

#[test]
fn a_peer_that_disappears_and_reappears_in_one_batch_has_not_left() {
    let now = Instant::now();
    let mut damping = of(2, now);
    let both = vec![removed(1), removed(2), put(1), put(2)];
    assert_eq!(damping.filter(both, now), []);
    assert_eq!(damping.held(), 0);
}

/// The first hosts that reacquire their leases may arrive together with the loss of all of them.
#[test]
fn peers_that_reappear_in_the_same_batch_still_count() {
    let now = Instant::now();
    let mut damping = of(2, now);
    assert_eq!(damping.filter(vec![removed(1), removed(2), put(1)], now), [held(2, false)]);
    assert_eq!((damping.is_held(&key(1)), damping.is_held(&key(2))), (false, true));
    assert_eq!(damping.filter(vec![put(2)], now + SECOND), []);
    assert_eq!((damping.held(), damping.due()), (0, None));
}

#[test]
fn released_peers_leave_at_once_and_do_not_count() {
    let now = Instant::now();
    let mut damping = of(3, now);
    assert_eq!(damping.filter(vec![released(1)], now), [left(1)]);
    assert_eq!(damping.filter(vec![released(2)], now + SECOND), [left(2)]);
    assert_eq!(damping.filter(vec![removed(3)], now + SECOND), [left(3)]);
    assert_eq!(damping.held(), 0);
}

#[test]
fn a_held_peer_that_is_released_leaves_at_once() {
    let now = Instant::now();
    let mut damping = of(3, now);
    damping.filter(vec![removed(1), removed(2)], now);
    assert_eq!(damping.filter(vec![released(1)], now), [left(1)]);
    assert_eq!((damping.held(), damping.peers().len()), (1, 2));
}

#[test]
fn a_peer_keeps_the_time_at_which_it_joined() {
    let now = Instant::now();
    let mut damping = of(2, now);
    damping.filter(vec![LeaseChange::Put(lease(1, 9)), put(3)], now + SECOND * 5);
    assert_eq!(damping.joined(&key(1)), Some(now));
    assert_eq!(damping.joined(&key(3)), Some(now + SECOND * 5));
    assert_eq!(damping.joined(&key(4)), None);
}

proptest! {
    /// The returned changes add up to the reported peers, no existing peer is missing, and after the hold exactly the existing
    /// peers remain.
    #[test]
    fn a_hold_is_bounded_and_hides_no_peer(
        steps in prop::collection::vec(
            (prop::collection::vec((0_u8..5, 0_u8..12, 0_u8..6), 1..10), 0_u64..20),
            0..60,
        ),
    ) {
        let mut now = Instant::now();
        let mut damping = Damping::new(DampingOptions::default());
        let (mut truth, mut reported) = (BTreeMap::new(), BTreeMap::new());
        let mut follow = |changes: Vec<PeerChange>, damping: &Damping| {
            for change in changes {
                let is_new = !reported.contains_key(&change.subnet());
                let says_new =
                    matches!(change, PeerChange::Joined(_) | PeerChange::Held { was_gone: true, .. });
                prop_assert_eq!(is_new, says_new);
                match change {
                    PeerChange::Joined(lease) | PeerChange::Changed(lease) | PeerChange::Held { lease, .. } => {
                        reported.insert(lease.subnet, lease.attrs.clone())
                    }
                    PeerChange::Left(subnet) => reported.remove(&subnet),
                };
            }
            let known: BTreeMap<_, _> =
                damping.peers().iter().map(|lease| (lease.subnet, lease.attrs.clone())).collect();
            prop_assert_eq!(&reported, &known);
            Ok(known)
        };
        for (changes, seconds) in steps {
            now += SECOND * u32::try_from(seconds).unwrap();
            follow(damping.expire(now), &damping)?;
            let changes: Vec<_> = changes.into_iter().map(|(kind, subnet, host)| match kind {
                0..2 => LeaseChange::Put(lease(subnet, host)),
                2..4 => removed(subnet),
                _ => released(subnet),
            }).collect();
            for change in &changes {
                match change {
                    LeaseChange::Put(lease) => truth.insert(lease.subnet, lease.attrs.clone()),
                    LeaseChange::Removed(subnet) | LeaseChange::Released(subnet) => truth.remove(subnet),
                };
            }
            let known = follow(damping.filter(changes, now), &damping)?;
            prop_assert!(truth.iter().all(|(subnet, attrs)| known.get(subnet) == Some(attrs)));
            let extra: BTreeSet<_> = known.keys().filter(|key| !truth.contains_key(key)).collect();
            prop_assert_eq!(extra.len(), damping.held());
            prop_assert!(damping.due().is_none_or(|due| due <= now + SECOND * 300));
        }
        let known = follow(damping.expire(now + SECOND * 300), &damping)?;
        prop_assert_eq!(known, truth);
    }
}
