//! etcd, over whichever of its two interfaces the network is kept in.
//!
//! The two interfaces have separate stores, even in one server: hosts that use different ones never see each other.
//! So the choice is made by where the configuration lies, and once made it stays.
//!
//! | v3 says | v2 says | choice |
//! |---|---|---|
//! | found | anything | v3, with a warning if v2 has one too |
//! | nothing there | found | v2 |
//! | nothing there | switched off | v3, once more than the configuration is asked for |
//! | nothing there | nothing there, or no answer | none yet |
//! | no answer | found, from an etcd without the v3 interface | v2 |
//! | no answer | anything else | none yet: v3 may have one too |

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use flannel_core::{
    LastContact, Lease, LeaseAttrs, RegistryError, RegistryEvent, Revision, Snapshot, StoreIdentity,
    SubnetKey, SubnetRegistry,
};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use crate::news::News;
use crate::{Etcd2Registry, Etcd3Registry};

/// Leases in etcd, over the interface that the network's configuration is found in. Clones share the choice.
#[derive(Clone, Debug)]
pub struct EtcdRegistry {
    v3: Etcd3Registry,
    v2: Etcd2Registry,
    chosen: Arc<OnceLock<Interface>>,
    /// Says that the configuration was read to choose.
    looked: Arc<News>,
}

/// One of etcd's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    V2,
    V3,
}

/// Where a configuration was looked for, and what came of it.
#[derive(Debug)]
enum Looked {
    Found(String),
    Nothing,
    /// This etcd does not do that.
    Off(RegistryError),
    NoAnswer(RegistryError),
}

impl From<Result<Option<String>, RegistryError>> for Looked {
    fn from(answer: Result<Option<String>, RegistryError>) -> Self {
        match answer {
            Ok(Some(config)) => Self::Found(config),
            Ok(None) => Self::Nothing,
            Err(error @ RegistryError::Refused(..)) => Self::Off(error),
            Err(error) => Self::NoAnswer(error),
        }
    }
}

impl EtcdRegistry {
    /// Looks in both when it is first asked.
    #[must_use]
    pub fn new(v3: Etcd3Registry, v2: Etcd2Registry) -> Self {
        Self { v3, v2, chosen: Arc::default(), looked: Arc::default() }
    }

    /// Tells whether the v2 interface was chosen.
    #[must_use]
    pub fn uses_v2(&self) -> bool {
        self.chosen.get() == Some(&Interface::V2)
    }

    fn chosen(&self) -> Option<&dyn SubnetRegistry> {
        match self.chosen.get()? {
            Interface::V2 => Some(&self.v2),
            Interface::V3 => Some(&self.v3),
        }
    }

    /// Returns the registry that was chosen, choosing if need be. Whoever asks for more than the configuration knows it
    /// from before; where only one interface is there, the leases are in that.
    async fn decided(&self) -> Result<&dyn SubnetRegistry, RegistryError> {
        if self.chosen().is_none() {
            let (_, v2_is_off) = self.choose().await?;
            // That read the configuration, and told nobody what it says.
            self.looked.tell();
            if v2_is_off {
                // If somebody chose meanwhile, that stays.
                let _ = self.chosen.set(Interface::V3);
            }
        }
        self.chosen().ok_or_else(|| {
            let reason = "there is no network config yet, so neither interface is chosen";
            RegistryError::Unavailable(self.describe(), reason.into())
        })
    }

    /// Looks in both, chooses if that allows it, and tells the configuration and whether v2 is switched off.
    async fn choose(&self) -> Result<(Option<String>, bool), RegistryError> {
        let v2 = tokio::time::timeout(V2_PATIENCE, self.v2.config());
        let (v3, v2) = tokio::join!(self.v3.config(), v2);
        let late = |_| Err(RegistryError::Unavailable(self.v2.describe(), "no answer yet".into()));
        let (v3, v2) = (Looked::from(v3), Looked::from(v2.unwrap_or_else(late)));
        let v3_is_there = match (&v3, &v2) {
            (Looked::Off(_) | Looked::NoAnswer(_), Looked::Found(_)) => {
                self.v2.has_v3().await.unwrap_or(true)
            }
            (Looked::Found(_) | Looked::Nothing | Looked::Off(_) | Looked::NoAnswer(_), _) => true,
        };
        let v2_is_off = matches!(v2, Looked::Off(_));
        let choice = choice(&v3, &v2, v3_is_there);
        if let Some((interface, reason)) = choice
            && self.chosen.set(interface).is_ok()
        {
            match reason {
                Reason::Both => tracing::warn!(
                    "etcd has a network config in its v3 and in its v2 interface: the v3 one is used, and hosts that \
                     use the other are not seen"
                ),
                Reason::Found => {
                    tracing::info!("Using the {interface:?} interface of etcd: the network config is there")
                }
                Reason::Old => tracing::info!("Using the V2 interface of etcd: this etcd has no other"),
            }
        }
        match (choice, v3, v2) {
            (Some((Interface::V3, _)), Looked::Found(config), _)
            | (Some((Interface::V2, _)), _, Looked::Found(config)) => Ok((Some(config), v2_is_off)),
            (_, Looked::Off(error) | Looked::NoAnswer(error), _) => Err(error),
            (_, Looked::Found(_) | Looked::Nothing, _) => Ok((None, v2_is_off)),
        }
    }
}

/// Why an interface was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Found,
    Both,
    Old,
}

/// The table above.
fn choice(v3: &Looked, v2: &Looked, v3_is_there: bool) -> Option<(Interface, Reason)> {
    match (v3, v2) {
        (Looked::Found(_), Looked::Found(_)) => Some((Interface::V3, Reason::Both)),
        (Looked::Found(_), _) => Some((Interface::V3, Reason::Found)),
        (Looked::Nothing, Looked::Found(_)) => Some((Interface::V2, Reason::Found)),
        (Looked::Off(_) | Looked::NoAnswer(_), Looked::Found(_)) if !v3_is_there => {
            Some((Interface::V2, Reason::Old))
        }
        (Looked::Nothing | Looked::Off(_) | Looked::NoAnswer(_), _) => None,
    }
}

/// How long the v2 interface may take to answer before the choice is made without it, so that where it hangs the v3
/// one does not wait for it.
const V2_PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait before looking again, in a watch that began before there was a configuration.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[async_trait]
impl SubnetRegistry for EtcdRegistry {
    fn describe(&self) -> String {
        match self.chosen() {
            Some(registry) => registry.describe(),
            None => format!("{} (v2 was looked in too)", self.v3.describe()),
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
        self.decided().await?.list().await
    }

    async fn create(
        &self,
        subnet: SubnetKey,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Lease, RegistryError> {
        self.decided().await?.create(subnet, attrs, ttl).await
    }

    async fn update(&self, lease: &Lease, attrs: &LeaseAttrs, ttl: Duration) -> Result<Lease, RegistryError> {
        self.decided().await?.update(lease, attrs, ttl).await
    }

    async fn renew(&self, lease: &Lease, ttl: Duration) -> Result<Duration, RegistryError> {
        self.decided().await?.renew(lease, ttl).await
    }

    async fn delete(&self, lease: &Lease) -> Result<(), RegistryError> {
        self.decided().await?.delete(lease).await
    }

    /// Only the one that was chosen is watched, and says anything.
    fn config_changes(&self) -> BoxStream<'static, ()> {
        let both = stream::select(self.v3.config_changes(), self.v2.config_changes());
        stream::select(both, self.looked.listen()).boxed()
    }

    fn reconnect(&self) {
        self.v3.reconnect();
        self.v2.reconnect();
    }

    fn watch(&self, after: Option<Revision>) -> BoxStream<'static, RegistryEvent> {
        let registry = self.clone();
        stream::once(async move {
            loop {
                if let Ok(decided) = registry.decided().await {
                    return decided.watch(after);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
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
    fn the_interface_is_the_one_that_the_configuration_is_found_in() {
        let found = || Looked::Found(String::new());
        let away = || Looked::NoAnswer(RegistryError::Unavailable("etcd".to_owned(), "away".into()));
        let off = || Looked::Off(RegistryError::Refused("etcd".to_owned(), "switched off".into()));
        for (v3, v2, v3_is_there, expected) in [
            (found(), Looked::Nothing, true, Some((Interface::V3, Reason::Found))),
            (found(), away(), true, Some((Interface::V3, Reason::Found))),
            (found(), found(), true, Some((Interface::V3, Reason::Both))),
            (Looked::Nothing, found(), true, Some((Interface::V2, Reason::Found))),
            (Looked::Nothing, Looked::Nothing, true, None),
            (Looked::Nothing, away(), true, None),
            (Looked::Nothing, off(), true, None),
            (off(), found(), false, Some((Interface::V2, Reason::Old))),
            (away(), found(), false, Some((Interface::V2, Reason::Old))),
            (away(), found(), true, None),
            (away(), Looked::Nothing, true, None),
            (away(), away(), true, None),
        ] {
            assert_eq!(choice(&v3, &v2, v3_is_there), expected, "{v3:?} {v2:?}");
        }
    }
}
