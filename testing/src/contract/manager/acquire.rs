//! Promises 1, 3, 9 and 11: the subnet that a host gets.

use std::collections::BTreeSet;

use flannel_core::{ManagerError, SubnetKey};
use futures::future::join_all;

use super::LeaseManagerSubject;
use super::joined::{CONFIG, acquire, attrs_of, open, published, try_acquire};
use crate::contract::{DAY, host, missing_hook, subnet};

/// Promise 1: the subnet is the assigned one or one that the network offers, and the lease has the requested attributes.
pub async fn lease_is_within_the_network(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    let config = manager.config().await.expect("config must succeed after the network was configured");
    let outside = "10.9.1.0-24".parse().expect("a valid subnet key");
    let of_other_size = "10.5.1.0-25".parse().expect("a valid subnet key");
    for previous in [None, Some(outside), Some(of_other_size)] {
        let lease = acquire(&*manager, &host(1), previous).await;
        match subject.assigned_subnet(1) {
            Some(assigned) => {
                assert_eq!(lease.subnet, assigned, "the leased subnet must be the assigned one")
            }
            None => assert!(
                config.offers(&lease.subnet),
                "the leased subnet must be one that {CONFIG} offers, got {}",
                lease.subnet
            ),
        }
        assert_eq!(
            attrs_of(&lease),
            published(subject, 1),
            "the lease must have the requested attributes, apart from overridden ones"
        );
        subject.revoke_subnet(lease.subnet).await;
    }
}

/// Promise 1: a host that acquires again, in the same run or after a restart, gets the lease that it has; `previous_lease` finds
/// that lease.
pub async fn host_has_one_lease(subject: &dyn LeaseManagerSubject) {
    let manager = open(subject, 1).await;
    assert_eq!(
        manager.previous_lease(host(1).public).await.expect("previous_lease must succeed"),
        None,
        "previous_lease must find no lease of a new host"
    );
    let own = acquire(&*manager, &host(1), None).await;
    assert_eq!(
        acquire(&*manager, &host(1), None).await.subnet,
        own.subnet,
        "a second acquire must return the subnet of the first"
    );
    let peer = acquire(&*open(subject, 2).await, &host(2), None).await;
    for previous in [None, Some(peer.subnet)] {
        let manager = open(subject, 1).await;
        let found = manager
            .previous_lease(host(1).public)
            .await
            .expect("previous_lease must succeed")
            .expect("previous_lease must find the lease of a host that holds one");
        assert_eq!(
            (found.subnet, attrs_of(&found)),
            (own.subnet, published(subject, 1)),
            "previous_lease must return the host's lease"
        );
        assert_eq!(
            acquire(&*manager, &host(1), previous).await.subnet,
            own.subnet,
            "acquire after a restart must return the host's subnet"
        );
    }
}

/// Promise 3: hosts that request the same subnet at the same time get different ones.
pub async fn subnets_are_unique(subject: &dyn LeaseManagerSubject) {
    let mut managers = Vec::new();
    for n in 1..=8 {
        managers.push((n, open(subject, n).await));
    }
    let requests = managers
        .iter()
        .map(|(n, manager)| async move { acquire(&**manager, &host(*n), Some(subnet(9))).await.subnet });
    let leased: Vec<SubnetKey> = join_all(requests).await;
    for (i, subnet) in leased.iter().enumerate() {
        let others = leased.iter().enumerate().filter(|(other, _)| *other != i);
        let overlapping: Vec<_> = others.filter(|(_, other)| other.overlaps(subnet)).collect();
        assert!(
            overlapping.is_empty(),
            "no subnet may overlap {subnet} of host {}, got {overlapping:?}",
            i + 1
        );
    }
}

/// Promises 3 and 9: a host that lost its lease gets the same subnet again unless another host has leased it.
pub async fn previous_subnet_is_reused_if_free(subject: &dyn LeaseManagerSubject) {
    if subject.assigned_subnet(1).is_some() {
        missing_hook("chooses_subnet");
    }
    let (manager, other) = (open(subject, 1).await, open(subject, 2).await);
    for _ in 0..2 {
        let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
        assert_eq!(own.subnet, subnet(77), "acquire must return the previous subnet while it is free");
        subject.revoke_subnet(subnet(77)).await;
    }
    let theirs = acquire(&*other, &host(2), Some(subnet(77))).await;
    assert_eq!(theirs.subnet, subnet(77), "another host must get the requested subnet while it is free");
    let own = acquire(&*manager, &host(1), Some(subnet(77))).await;
    assert_ne!(own.subnet, subnet(77), "acquire must not return a subnet that another host holds");
    let peer =
        open(subject, 2).await.previous_lease(host(2).public).await.expect("previous_lease must succeed");
    assert_eq!(peer.map(|lease| lease.subnet), Some(subnet(77)), "the other host must keep its subnet");
}

/// Promise 11: `acquire` in a full network fails with an error of its own until a subnet is free.
pub async fn full_network_is_an_error(subject: &dyn LeaseManagerSubject) {
    // The first subnet of a network is never leased, so three of four are available.
    if !subject.set_config(r#"{"Network":"10.5.0.0/24","SubnetLen":26}"#).await {
        missing_hook("set_config");
    }
    let mut leased = BTreeSet::new();
    for n in 1..=3 {
        let manager = subject.open(n, DAY).await;
        leased.insert(acquire(&*manager, &host(n), None).await.subnet);
    }
    assert_eq!(leased.len(), 3, "three hosts must have three subnets, got {leased:?}");
    let manager = subject.open(4, DAY).await;
    let full = try_acquire(&*manager, &host(4), leased.first().copied()).await;
    assert!(
        matches!(full, Err(ManagerError::OutOfSubnets(_))),
        "acquire in a full network must fail with OutOfSubnets, got {full:?}"
    );
    let freed = leased.pop_last().expect("three subnets");
    subject.revoke_subnet(freed).await;
    assert_eq!(
        acquire(&*manager, &host(4), None).await.subnet,
        freed,
        "acquire must return the only free subnet"
    );
}

/// Promise 11: `config` names the place of a missing or invalid config, the invalid field, and how to write it.
pub async fn missing_or_invalid_config_is_named(subject: &dyn LeaseManagerSubject) {
    let manager = subject.open(1, DAY).await;
    let missing = manager.config().await;
    if !subject.set_config(r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#).await {
        missing_hook("set_config");
    }
    let Err(ManagerError::NotConfigured { place, how }) = &missing else {
        return assert_eq!(
            format!("{missing:?}"),
            "NotConfigured",
            "config of an unconfigured network must fail with NotConfigured"
        );
    };
    assert!(
        !place.is_empty() && !how.is_empty(),
        "NotConfigured must name the place of the config and how to write it, got {missing:?}"
    );
    let invalid = manager.config().await;
    let Err(ManagerError::Config { error, place, how }) = &invalid else {
        return assert_eq!(format!("{invalid:?}"), "Config", "an invalid config must fail with Config");
    };
    assert!(error.to_string().contains("SubnetLen"), "the error must name the field SubnetLen, got {error}");
    assert!(
        !place.is_empty() && !how.is_empty(),
        "Config must name the place of the config and how to write it, got {invalid:?}"
    );
    subject.set_config(CONFIG).await;
    let config = manager.config().await.expect("config must succeed once it is valid");
    assert!(config.offers(&subnet(1)), "config must return the corrected config, got {config:?}");
}
