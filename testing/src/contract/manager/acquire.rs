//! Promises 1, 3, 9 and 11: which subnet a host gets.

use std::collections::BTreeSet;

use flannel_core::{ManagerError, SubnetKey};
use futures::future::join_all;

use super::LeaseManagerSubject;
use super::cluster::{CONFIG, acquire, open, try_acquire, words};
use crate::contract::{DAY, host, subnet};

/// Promise 1: the subnet lies in the network, and the lease says what was asked for.
pub async fn a_lease_is_one_that_the_network_offers(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    let config = manager.config().await.expect("the network is configured");
    let elsewhere = "10.9.1.0-24".parse().expect("is a subnet key");
    let of_other_size = "10.5.1.0-25".parse().expect("is a subnet key");
    for previous in [None, Some(elsewhere), Some(of_other_size)] {
        let lease = acquire(&*manager, &host(1), previous).await;
        assert!(config.offers(&lease.subnet), "{} is none of {CONFIG}'s", lease.subnet);
        assert_eq!(words(&lease), host(1), "what the lease says");
        subject.revoke_subnet(lease.subnet).await;
    }
}

/// Promise 1: a host that asks again, in the same run or after a new start, gets what it has; `recall` finds it.
pub async fn one_host_has_one_lease(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    assert_eq!(
        manager.previous_lease(host(1).public).await.expect("looks it up"),
        None,
        "the lease of a new host"
    );
    let own = acquire(&*manager, &host(1), None).await;
    assert_eq!(acquire(&*manager, &host(1), None).await.subnet, own.subnet, "asked again");
    let peer = acquire(&*open(subject, 2).await, &host(2), None).await;
    for previous in [None, Some(peer.subnet)] {
        let manager = open(subject, 1).await;
        let recalled =
            manager.previous_lease(host(1).public).await.expect("looks it up").expect("there is a lease");
        assert_eq!((recalled.subnet, words(&recalled)), (own.subnet, host(1)), "what is recalled");
        assert_eq!(
            acquire(&*manager, &host(1), previous).await.subnet,
            own.subnet,
            "asked after a new start"
        );
    }
}

/// Promise 3: hosts that ask at the same time, and for the same subnet, get different ones.
pub async fn no_two_hosts_hold_one_subnet(subject: &dyn LeaseManagerSubject) {
    let mut managers = Vec::new();
    for n in 1..=8 {
        managers.push((n, open(subject, n).await));
    }
    let asked = managers
        .iter()
        .map(|(n, manager)| async move { acquire(&**manager, &host(*n), Some(subnet(9))).await.subnet });
    let given: Vec<SubnetKey> = join_all(asked).await;
    for (i, subnet) in given.iter().enumerate() {
        let others = given.iter().enumerate().filter(|(other, _)| *other != i);
        let shared: Vec<_> = others.filter(|(_, other)| other.overlaps(subnet)).collect();
        assert!(shared.is_empty(), "host {} has {subnet}, and these have parts of it: {shared:?}", i + 1);
    }
}

/// Promises 3 and 9: a host that lost its lease gets the same subnet, unless another host has it by then.
///
/// Checks nothing if hosts do not choose.
pub async fn a_host_gets_its_previous_subnet_if_it_is_free(subject: &dyn LeaseManagerSubject) {
    if !subject.chooses() {
        return;
    }
    let (manager, other) = (open(subject, 1).await, open(subject, 2).await);
    for _ in 0..2 {
        assert_eq!(acquire(&*manager, &host(1), Some(subnet(77))).await.subnet, subnet(77), "it is free");
        subject.revoke_subnet(subnet(77)).await;
    }
    assert_eq!(acquire(&*other, &host(2), Some(subnet(77))).await.subnet, subnet(77), "it is free");
    let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
    assert_ne!(own.subnet, subnet(77), "it is another host's");
    let peer = open(subject, 2).await.previous_lease(host(2).public).await.expect("looks it up");
    assert_eq!(peer.map(|lease| lease.subnet), Some(subnet(77)), "the other host still has it");
}

/// Promise 11: a network without a free subnet is an error of its own, until there is one.
///
/// Checks nothing if the configuration cannot be written.
pub async fn a_full_network_says_so(subject: &dyn LeaseManagerSubject) {
    // Flannel never gives out the first subnet of a network.
    if !subject.set_config(r#"{"Network":"10.5.0.0/24","SubnetLen":26}"#).await {
        return;
    }
    let mut given = BTreeSet::new();
    for n in 1..=3 {
        let manager = subject.open(n, DAY).await;
        given.insert(acquire(&*manager, &host(n), None).await.subnet);
    }
    assert_eq!(given.len(), 3, "three hosts have three subnets: {given:?}");
    let manager = subject.open(4, DAY).await;
    let full = try_acquire(&*manager, &host(4), given.first().copied()).await;
    assert!(matches!(full, Err(ManagerError::OutOfSubnets(_))), "want OutOfSubnets, got {full:?}");
    let freed = given.pop_last().expect("there are three");
    subject.revoke_subnet(freed).await;
    assert_eq!(acquire(&*manager, &host(4), None).await.subnet, freed, "the only one that is free");
}

/// Promise 11: it is told where the configuration is missing, or what in it is wrong, and how to write it.
///
/// Checks nothing if the configuration cannot be written.
pub async fn a_configuration_that_is_missing_or_wrong_is_named(subject: &dyn LeaseManagerSubject) {
    let manager = subject.open(1, DAY).await;
    let missing = manager.config().await;
    if !subject.set_config(r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#).await {
        return;
    }
    let Err(ManagerError::NotConfigured { place, how }) = &missing else {
        return assert_eq!(
            format!("{missing:?}"),
            "NotConfigured",
            "what a network says that nobody configured"
        );
    };
    assert!(!place.is_empty() && !how.is_empty(), "says where, and how to write it: {missing:?}");
    let wrong = manager.config().await;
    let Err(ManagerError::Config { error, place, how }) = &wrong else {
        return assert_eq!(
            format!("{wrong:?}"),
            "Config",
            "what a network says whose configuration is wrong"
        );
    };
    assert!(error.to_string().contains("SubnetLen"), "{error} does not name the field");
    assert!(!place.is_empty() && !how.is_empty(), "says where, and how to write it: {wrong:?}");
    subject.set_config(CONFIG).await;
    let config = manager.config().await.expect("it was corrected");
    assert!(config.offers(&subnet(1)));
}
