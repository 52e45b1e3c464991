//! etcd with automatic choice of the interface.
//!
//! The two interfaces have separate stores, even on one server: hosts that use different interfaces never see each other.
//! The choice therefore follows the network config, and is final.
//!
//! | config in v3 | config in v2 | choice |
//! |---|---|---|
//! | found | any | v3, with a warning if v2 has a config too |
//! | not found | found | v2 |
//! | not found | not served | v3, when something other than the config is requested |
//! | not found | not found, or no answer | none yet |
//! | no answer | found, on an etcd or a proxy without the v3 interface | v2 |
//! | no answer | any other | none yet, because v3 may have a config too |

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, StoreIdentity,
    SubnetKey, SubnetRegistry, chain,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::change_notifier::ChangeNotifier;
use crate::etcd2::NOT_SERVED;
use crate::{Etcd2Registry, Etcd3Registry};

/// A registry in the etcd interface that has the network config. Clones share the choice.
#[derive(Clone, Debug)]
pub struct EtcdRegistry {
    v3: Etcd3Registry,
    v2: Etcd2Registry,
    chosen: Arc<OnceLock<EtcdApi>>,
    /// Notifies that the config was read to make the choice.
    config_changes: Arc<ChangeNotifier>,
    /// What the last read of the v2 store showed, while nothing is chosen.
    v2_lookup: Arc<Mutex<Option<String>>>,
}

/// An interface of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EtcdApi {
    V2,
    V3,
}

/// The result of reading the config over one interface.
#[derive(Debug)]
enum ConfigLookup {
    Found(String),
    NotFound,
    /// This etcd does not serve the interface, or refuses access.
    Refused(RegistryError),
    NoAnswer(RegistryError),
}

impl From<Result<Option<String>, RegistryError>> for ConfigLookup {
    fn from(answer: Result<Option<String>, RegistryError>) -> Self {
        match answer {
            Ok(Some(config)) => Self::Found(config),
            Ok(None) => Self::NotFound,
            Err(error @ RegistryError::Refused(..)) => Self::Refused(error),
            Err(error) => Self::NoAnswer(error),
        }
    }
}

impl ConfigLookup {
    /// Describes the result for the v2 store, if there is no config.
    fn describe_v2(&self) -> Option<String> {
        match self {
            Self::Found(_) => None,
            Self::NotFound => Some("the v2 store has no config either".to_owned()),
            Self::Refused(error) => {
                let reason = chain(error);
                let is_served = !reason.contains(NOT_SERVED);
                Some(if is_served { reason } else { "v2 is not served here".to_owned() })
            }
            Self::NoAnswer(_) => Some("the v2 interface does not answer".to_owned()),
        }
    }
}

impl EtcdRegistry {
    /// Creates a registry that reads both interfaces at the first call.
    #[must_use]
    pub fn new(v3: Etcd3Registry, v2: Etcd2Registry) -> Self {
        Self { v3, v2, chosen: Arc::default(), config_changes: Arc::default(), v2_lookup: Arc::default() }
    }

    /// Reports whether the v2 interface was chosen.
    #[must_use]
    pub fn uses_v2(&self) -> bool {
        self.chosen.get() == Some(&EtcdApi::V2)
    }

    fn chosen(&self) -> Option<&dyn SubnetRegistry> {
        match self.chosen.get()? {
            EtcdApi::V2 => Some(&self.v2),
            EtcdApi::V3 => Some(&self.v3),
        }
    }

    /// Returns the chosen registry, after making the choice if necessary. A caller that requests more than the config
    /// already knows the config; if etcd serves only v3, the leases are there.
    async fn choice(&self) -> Result<&dyn SubnetRegistry, RegistryError> {
        if self.chosen().is_none() {
            let (_, v2_is_refused) = self.choose().await?;
            // The choice read the config without returning it to anyone.
            self.config_changes.notify();
            if v2_is_refused {
                // A concurrent choice wins.
                let _ = self.chosen.set(EtcdApi::V3);
            }
        }
        self.chosen().ok_or_else(|| {
            let reason = "no network config in either interface of etcd yet";
            RegistryError::Unavailable(self.describe(), reason.into())
        })
    }

    /// Reads the config over both interfaces and chooses if possible. Returns the config, and whether v2 is refused.
    async fn choose(&self) -> Result<(Option<String>, bool), RegistryError> {
        let v2 = tokio::time::timeout(V2_TIMEOUT, self.v2.config());
        let (v3, v2) = tokio::join!(self.v3.config(), v2);
        let late = |_| {
            Err(RegistryError::Unavailable(
                self.v2.describe(),
                format!("no answer within {V2_TIMEOUT:?}").into(),
            ))
        };
        let (v3, v2) = (ConfigLookup::from(v3), ConfigLookup::from(v2.unwrap_or_else(late)));
        let v3_is_served = match (&v3, &v2) {
            (ConfigLookup::Refused(_) | ConfigLookup::NoAnswer(_), ConfigLookup::Found(_)) => {
                !self.v3.is_not_served().await && self.v2.has_v3().await.unwrap_or(true)
            }
            (
                ConfigLookup::Found(_)
                | ConfigLookup::NotFound
                | ConfigLookup::Refused(_)
                | ConfigLookup::NoAnswer(_),
                _,
            ) => true,
        };
        *self.v2_lookup.lock().unwrap_or_else(PoisonError::into_inner) = v2.describe_v2();
        let v2_is_refused = matches!(v2, ConfigLookup::Refused(_));
        let choice = choose_api(&v3, &v2, v3_is_served);
        if let Some((interface, reason)) = choice
            && self.chosen.set(interface).is_ok()
        {
            match reason {
                ChoiceReason::Both => tracing::warn!(
                    "etcd has a network config in both its v3 and its v2 store: using v3; hosts that use v2 are not \
                     visible"
                ),
                ChoiceReason::Found => {
                    tracing::info!("Using the {interface:?} interface of etcd, which has the network config")
                }
                ChoiceReason::NoV3 => {
                    tracing::info!("Using the V2 interface of etcd; this etcd has no V3 interface")
                }
            }
        }
        match (choice, v3, v2) {
            (Some((EtcdApi::V3, _)), ConfigLookup::Found(config), _)
            | (Some((EtcdApi::V2, _)), _, ConfigLookup::Found(config)) => Ok((Some(config), v2_is_refused)),
            (_, ConfigLookup::Refused(error) | ConfigLookup::NoAnswer(error), _) => Err(error),
            (_, ConfigLookup::Found(_) | ConfigLookup::NotFound, _) => Ok((None, v2_is_refused)),
        }
    }
}

/// The reason for a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChoiceReason {
    Found,
    Both,
    NoV3,
}

/// Chooses according to the table above.
fn choose_api(v3: &ConfigLookup, v2: &ConfigLookup, v3_is_served: bool) -> Option<(EtcdApi, ChoiceReason)> {
    match (v3, v2) {
        (ConfigLookup::Found(_), ConfigLookup::Found(_)) => Some((EtcdApi::V3, ChoiceReason::Both)),
        (ConfigLookup::Found(_), _) => Some((EtcdApi::V3, ChoiceReason::Found)),
        (ConfigLookup::NotFound, ConfigLookup::Found(_)) => Some((EtcdApi::V2, ChoiceReason::Found)),
        (ConfigLookup::Refused(_) | ConfigLookup::NoAnswer(_), ConfigLookup::Found(_)) if !v3_is_served => {
            Some((EtcdApi::V2, ChoiceReason::NoV3))
        }
        (ConfigLookup::NotFound | ConfigLookup::Refused(_) | ConfigLookup::NoAnswer(_), _) => None,
    }
}

/// The time limit for the v2 interface, so that the choice does not wait for an interface that hangs.
const V2_TIMEOUT: Duration = Duration::from_secs(2);

/// The interval of attempts to choose, for a watch that started before there was a config.
const CHOICE_INTERVAL: Duration = Duration::from_secs(1);

#[async_trait]
impl SubnetRegistry for EtcdRegistry {
    fn describe(&self) -> String {
        match self.chosen() {
            Some(registry) => registry.describe(),
            None => {
                let v2 = self.v2_lookup.lock().unwrap_or_else(PoisonError::into_inner);
                let v2 = v2.as_ref().map(|lookup| format!(" ({lookup})")).unwrap_or_default();
                format!("{}{v2}", self.v3.describe())
            }
        }
    }

    fn store(&self) -> StoreIdentity {
        self.chosen().unwrap_or(&self.v3).store()
    }

    fn last_contact(&self) -> Option<LastContact> {
        self.chosen()?.last_contact()
    }

    fn how_to_configure(&self) -> String {
        self.chosen().unwrap_or(&self.v3).how_to_configure()
    }

    async fn config(&self) -> Result<Option<String>, RegistryError> {
        match self.chosen() {
            Some(registry) => registry.config().await,
            None => Ok(self.choose().await?.0),
        }
    }

    async fn list(&self) -> Result<Snapshot, RegistryError> {
        self.choice().await?.list().await
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        self.choice().await?.create(subnet, attrs, ttl).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        self.choice().await?.update(lease, attrs, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        self.choice().await?.renew(lease, ttl).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.choice().await?.delete(lease).await
    }

    /// Only the chosen registry is watched and notifies.
    fn config_changes(&self) -> BoxStream<'static, ()> {
        let both = stream::select(self.v3.config_changes(), self.v2.config_changes());
        stream::select(both, self.config_changes.subscribe()).boxed()
    }

    fn reconnect(&self) {
        self.v3.reconnect();
        self.v2.reconnect();
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let registry = self.clone();
        stream::once(async move {
            loop {
                if let Ok(chosen) = registry.choice().await {
                    return chosen.watch(after);
                }
                tokio::time::sleep(CHOICE_INTERVAL).await;
            }
        })
        .flatten()
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_with_the_config_is_chosen() {
        let found = || ConfigLookup::Found(String::new());
        let away = || ConfigLookup::NoAnswer(RegistryError::Unavailable("etcd".to_owned(), "away".into()));
        let refused =
            || ConfigLookup::Refused(RegistryError::Refused("etcd".to_owned(), "not served".into()));
        for (v3, v2, v3_is_served, expected) in [
            (found(), ConfigLookup::NotFound, true, Some((EtcdApi::V3, ChoiceReason::Found))),
            (found(), away(), true, Some((EtcdApi::V3, ChoiceReason::Found))),
            (found(), found(), true, Some((EtcdApi::V3, ChoiceReason::Both))),
            (ConfigLookup::NotFound, found(), true, Some((EtcdApi::V2, ChoiceReason::Found))),
            (ConfigLookup::NotFound, ConfigLookup::NotFound, true, None),
            (ConfigLookup::NotFound, away(), true, None),
            (ConfigLookup::NotFound, refused(), true, None),
            (refused(), found(), false, Some((EtcdApi::V2, ChoiceReason::NoV3))),
            (away(), found(), false, Some((EtcdApi::V2, ChoiceReason::NoV3))),
            (away(), found(), true, None),
            (away(), ConfigLookup::NotFound, true, None),
            (away(), away(), true, None),
        ] {
            assert_eq!(choose_api(&v3, &v2, v3_is_served), expected, "{v3:?} {v2:?}");
        }
    }
}
