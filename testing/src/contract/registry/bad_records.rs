//! Promise 9: a record that cannot be read hides no other.

use std::collections::{BTreeMap, BTreeSet};

use super::follow::Follower;
use super::{RegistrySubject, create, host, sorted, subnet};

/// Records that cannot be read, and whether their key is that of a subnet.
const BAD: [(&str, &[u8], bool); 7] = [
    ("10.5.100.0-24", b"{", true),
    ("10.5.101.0-24", b"", true),
    ("10.5.102.0-24", b"\xff\xfe", true),
    ("10.5.103.0-24", br#"{"PublicIP":"::1"}"#, true),
    ("garbage", br#"{"PublicIP":"192.168.0.9"}"#, false),
    ("old/10.5.1.0-24", br#"{"PublicIP":"192.168.0.9"}"#, false),
    ("10.5.1.0-024", br#"{"PublicIP":"192.168.0.9"}"#, false),
];

/// Promise 9: a record that cannot be read is named beside the good ones.
pub async fn a_bad_record_hides_no_other_in_a_list(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let low = create(&*registry, 1).await;
    for (key, value, _) in BAD {
        subject.put_raw(key, value).await;
    }
    let high = create(&*registry, 200).await;
    let list = registry.list().await.expect("lists");
    assert_eq!(sorted(list.leases), [low, high]);
    let bad: BTreeMap<_, _> = list.bad.into_iter().map(|record| (record.key, record.subnet)).collect();
    let expected = BAD.map(|(key, _, is_subnet)| (key.to_owned(), key.parse().ok().filter(|_| is_subnet)));
    assert_eq!(bad, BTreeMap::from(expected));
}

/// Promise 9: a record that cannot be read is told, and so is all that is written after it, its removal included.
pub async fn a_bad_record_hides_no_other_in_a_watch(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let mut watch = Follower::new(subject, registry.watch(None));
    create(&*registry, 1).await;
    for (i, (key, value, _)) in (2..).zip(BAD) {
        subject.put_raw(key, value).await;
        create(&*registry, i).await;
        watch.agrees_with(&*registry).await;
    }
    assert_eq!(watch.state.bad.len(), BAD.len());
    subject.put_raw(BAD[0].0, host(7).to_record().as_bytes()).await;
    watch.agrees_with(&*registry).await;
    assert_eq!(watch.state.bad.len(), BAD.len() - 1, "a record that was repaired is good");
    for (key, ..) in BAD {
        subject.remove_raw(key).await;
    }
    watch.agrees_with(&*registry).await;
    assert_eq!(watch.state.bad, BTreeSet::new());
    assert!(watch.state.leases.contains_key(&subnet(1)), "a record of another key took it along");
}
