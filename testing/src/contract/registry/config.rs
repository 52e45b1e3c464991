//! Promise 11: config changes are noticed.

use flannel_core::{RegistryEvent, SubnetRegistry};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::follower::Follower;
use super::{RegistrySubject, create};

/// Promise 11: `config_changes` reports a config that was written before the watch started, while it runs, or where the
/// store's history ends.
pub async fn config_change_is_noticed(subject: &dyn RegistrySubject) {
    config_changes(subject, false).await;
}

/// Promise 11: `config_changes` reports a config that was written around an outage.
pub async fn config_change_during_an_outage_is_noticed(subject: &dyn RegistrySubject) {
    config_changes(subject, true).await;
}

async fn config_changes(subject: &dyn RegistrySubject, with_outage: bool) {
    let registry = subject.open().await;
    let config = |n: u8| format!(r#"{{"Network":"10.{n}.0.0/16"}}"#);
    subject.set_config(&config(1)).await;
    let mut changes = registry.config_changes();
    assert_eq!(
        registry.config().await.expect("config must succeed"),
        Some(config(1)),
        "config must return the text that was written"
    );
    let listed = registry.list().await.expect("list must succeed").revision;
    subject.set_config(&config(2)).await;
    create(&*registry, 1).await;
    let mut watch = Follower::new(subject, registry.watch(Some(listed)));
    assert_noticed(subject, &*registry, &mut watch, &mut changes, &config(2)).await;
    subject.set_config(&config(3)).await;
    assert_noticed(subject, &*registry, &mut watch, &mut changes, &config(3)).await;
    if with_outage {
        subject.stop().await;
        // Once the watch reports the outage, it has to resume.
        watch.wait_for("the outage", |event| matches!(event, RegistryEvent::Unavailable(_))).await;
        subject.start().await;
    }
    subject.set_config(&config(4)).await;
    create(&*registry, 2).await;
    subject.compact().await;
    assert_noticed(subject, &*registry, &mut watch, &mut changes, &config(4)).await;
}

/// Asserts that a reader of the config who re-reads it on each change reads this one.
async fn assert_noticed(
    subject: &dyn RegistrySubject,
    registry: &dyn SubnetRegistry,
    watch: &mut Follower,
    changes: &mut BoxStream<'static, ()>,
    config: &str,
) {
    let noticed = async {
        loop {
            tokio::select! {
                _ = watch.next_of_any_kind() => {}
                change = changes.next() => {
                    assert!(change.is_some(), "config_changes must never end");
                    if registry.config().await.is_ok_and(|read| read.as_deref() == Some(config)) {
                        break;
                    }
                }
            }
        }
    };
    assert!(
        timeout(subject.patience(), noticed).await.is_ok(),
        "config_changes must yield within {:?} after {config} was written (the default of the trait never yields: \
         implement it, or skip `config_changes` with a reason)",
        subject.patience()
    );
}
