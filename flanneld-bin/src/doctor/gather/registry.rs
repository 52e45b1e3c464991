//! What the registry says: the configuration, the leases, and what time it is.

use std::sync::Arc;
use std::time::Duration;

use flannel_core::{BoxError, NetworkConfig, RegistryError, SubnetRegistry, chain};
use flannel_registry::EtcdRegistry;
use tokio::time::timeout;

use super::wall_clock;
use crate::doctor::etcdctl::Etcdctl;
use crate::doctor::facts::{Clock, Config, Registry};
use crate::options::{EtcdApi, EtcdOptions, Options};
use crate::registry;

/// A registry that is there answers in milliseconds; one that is asked member by member takes some seconds for each.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks the registry of the flags.
pub(super) async fn ask(options: &Options) -> Registry {
    let etcd = &options.etcd;
    let (registry, etcdctl) = match open(etcd, options.etcd_api) {
        Ok(opened) => opened,
        Err(error) => {
            let (name, etcdctl) = (etcd.endpoints.join(", "), Etcdctl::new(etcd, false));
            let config = Config::BadOptions(chain(error.as_ref()));
            return Registry { name, etcdctl, config, leases: None, clock: None };
        }
    };
    let (config, clock) = tokio::join!(config(&*registry), clock(etcd));
    let mut leases = None;
    if matches!(config, Config::Valid(_) | Config::Invalid(_)) {
        leases = timeout(PATIENCE, registry.list()).await.ok().and_then(Result::ok);
    }
    Registry { name: registry.describe(), etcdctl: etcdctl(), config, leases, clock }
}

/// Reads the configuration of a network.
pub(super) async fn config_of(options: &Options) -> Option<NetworkConfig> {
    let (registry, _) = open(&options.etcd, options.etcd_api).ok()?;
    match config(&*registry).await {
        Config::Valid(config) => Some(config),
        Config::BadOptions(_)
        | Config::Silent(_)
        | Config::Refused(_)
        | Config::Missing
        | Config::Invalid(_) => None,
    }
}

/// Opens the registry as the daemon does. Which of its interfaces is used is known when it has been asked.
#[expect(clippy::type_complexity, reason = "two things that are made together")]
fn open(
    etcd: &EtcdOptions,
    api: EtcdApi,
) -> Result<(Arc<dyn SubnetRegistry>, Box<dyn Fn() -> Etcdctl>), BoxError> {
    let by_hand = etcd.clone();
    if api == EtcdApi::Auto {
        let registry = EtcdRegistry::new(registry::v3(etcd)?, registry::v2(etcd)?);
        let chosen = registry.clone();
        return Ok((Arc::new(registry), Box::new(move || Etcdctl::new(&by_hand, chosen.uses_v2()))));
    }
    let is_v2 = api == EtcdApi::V2;
    Ok((registry::open(etcd, api)?, Box::new(move || Etcdctl::new(&by_hand, is_v2))))
}

async fn config(registry: &dyn SubnetRegistry) -> Config {
    match timeout(PATIENCE, registry.config()).await {
        Err(_) => Config::Silent(format!("{}: no answer within {PATIENCE:?}", registry.describe())),
        Ok(Err(error @ RegistryError::Refused(..))) => Config::Refused(chain(&error)),
        Ok(Err(error)) => Config::Silent(chain(&error)),
        Ok(Ok(None)) => Config::Missing,
        Ok(Ok(Some(text))) => match NetworkConfig::parse(&text) {
            Ok(config) => Config::Valid(config),
            Err(error) => Config::Invalid(error.to_string()),
        },
    }
}

/// Asks what time it is there.
async fn clock(etcd: &EtcdOptions) -> Option<Clock> {
    let registry = registry::v2(etcd).ok()?;
    let asked = wall_clock();
    let (there, member) = timeout(PATIENCE, registry.server_time()).await.ok()?.ok()?;
    Some(Clock { member, there: there?, asked, answered: wall_clock() })
}
