//! Promise 11: another configuration is noticed.

use flannel_core::{RegistryEvent, SubnetRegistry};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::timeout;

use super::follow::Follower;
use super::{RegistrySubject, create};

/// Promise 11: a configuration that is written is noticed, also if that was before the watch began, while the store was
/// away, or where its history ends.
pub async fn another_configuration_is_noticed(subject: &dyn RegistrySubject) {
    let registry = subject.open().await;
    let config = |n: u8| format!(r#"{{"Network":"10.{n}.0.0/16"}}"#);
    subject.set_config(&config(1)).await;
    let mut changes = registry.config_changes();
    assert_eq!(registry.config().await.expect("reads"), Some(config(1)));
    let listed = registry.list().await.expect("lists").revision;
    subject.set_config(&config(2)).await;
    create(&*registry, 1).await;
    let mut watch = Follower::new(subject, registry.watch(Some(listed)));
    notices(subject, &*registry, &mut watch, &mut changes, &config(2)).await;
    subject.set_config(&config(3)).await;
    notices(subject, &*registry, &mut watch, &mut changes, &config(3)).await;
    if subject.stop().await {
        // Until it is silent, so that the watch must begin again.
        watch.hears("that the store is silent", |event| matches!(event, RegistryEvent::Unavailable(_))).await;
        subject.start().await;
    }
    subject.set_config(&config(4)).await;
    create(&*registry, 2).await;
    subject.compact().await;
    notices(subject, &*registry, &mut watch, &mut changes, &config(4)).await;
}

/// Waits until whoever reads the configuration when it may have changed reads this one.
async fn notices(
    subject: &dyn RegistrySubject,
    registry: &dyn SubnetRegistry,
    watch: &mut Follower,
    changes: &mut BoxStream<'static, ()>,
    config: &str,
) {
    let noticed = async {
        loop {
            tokio::select! {
                _ = watch.any() => {}
                change = changes.next() => {
                    assert!(change.is_some(), "the changes ended");
                    if registry.config().await.is_ok_and(|read| read.as_deref() == Some(config)) {
                        break;
                    }
                }
            }
        }
    };
    assert!(timeout(subject.patience(), noticed).await.is_ok(), "nobody noticed {config}");
}
