//! Promise 9: an unreadable record hides no other.

use std::collections::{BTreeMap, BTreeSet};

use super::follower::Follower;
use super::{RegistrySubject, create, host, sorted, subnet};

/// Unreadable records, and whether their key is that of a subnet.
const BAD: [(&str, &[u8], bool); 7] = [
    ("10.5.100.0-24", b"{", true),
    ("10.5.101.0-24", b"", true),
    ("10.5.102.0-24", b"\xff\xfe", true),
    ("10.5.103.0-24", br#"{"PublicIP":"::1"}"#, true),
    ("garbage", br#"{"PublicIP":"192.168.0.9"}"#, false),
    ("old/10.5.1.0-24", br#"{"PublicIP":"192.168.0.9"}"#, false),
    ("10.5.1.0-024", br#"{"PublicIP":"192.168.0.9"}"#, false),
];

/// Promise 9: a list names unreadable records beside the readable ones.
pub async fn bad_record_hides_no_other_in_a_list(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let low = create(&*registry, 1).await;
    for (key, value, _) in BAD {
        subject.put_raw(key, value).await;
    }
    let high = create(&*registry, 200).await;
    let list = registry.list().await.expect("list must succeed with unreadable records in the store");
    assert_eq!(sorted(list.leases), [low, high], "a list must contain every readable record");
    let bad: BTreeMap<_, _> = list.bad.into_iter().map(|record| (record.key, record.subnet)).collect();
    let expected = BAD.map(|(key, _, is_subnet)| (key.to_owned(), key.parse().ok().filter(|_| is_subnet)));
    assert_eq!(
        bad,
        BTreeMap::from(expected),
        "a list must name every unreadable record, with its subnet if any"
    );
}

/// Promise 9: a watch reports an unreadable record, everything written after it, and its removal.
pub async fn bad_record_hides_no_other_in_a_watch(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    create(&*registry, 1).await;
    for (i, (key, value, _)) in (2..).zip(BAD) {
        subject.put_raw(key, value).await;
        create(&*registry, i).await;
        watch.assert_agrees_with(&*registry).await;
    }
    assert_eq!(watch.state.bad.len(), BAD.len(), "a watch must report every unreadable record");
    subject.put_raw(BAD[0].0, host(7).to_record().as_bytes()).await;
    watch.assert_agrees_with(&*registry).await;
    assert_eq!(
        watch.state.bad.len(),
        BAD.len() - 1,
        "a record must not be reported as bad once it is repaired"
    );
    for (key, ..) in BAD {
        subject.remove_raw(key).await;
    }
    watch.assert_agrees_with(&*registry).await;
    assert_eq!(
        watch.state.bad,
        BTreeSet::new(),
        "a watch must report the removal of every unreadable record"
    );
    assert!(
        watch.state.leases.contains_key(&subnet(1)),
        "the removal of an unreadable record must not remove another"
    );
}
