//! Changes of the network configuration.
//!
//! ```text
//!  change, or reload ──▶ read ──▶ unchanged: done
//!                         ▲ │     unreadable or invalid: reported once, the previous config stays
//!                  retry  └─┤     changed: does the lease fit? can the backend apply it? ── no: as above
//!                           └──▶  yes: the backend reconfigures, a pass follows, and the lease is updated
//! ```

use std::sync::Arc;

use tokio::time::Instant;

use super::Node;
use crate::backend::{BackendError, OpenRequest};
use crate::config::NetworkConfig;
use crate::config_reader::{ConfigReader, ReadConfig};
use crate::event::NetworkEvent;
use crate::manager::ManagerError;
use crate::peers::Dirty;
use crate::registry::RegistryError;
use crate::subnet::SubnetKey;

impl Node {
    /// Handles the result of a read. Returns the configuration if the network applied it.
    pub(super) fn on_config(
        &mut self,
        running: &NetworkConfig,
        read: ReadConfig,
        was_requested: bool,
        reader: &mut ConfigReader,
    ) -> Option<Arc<NetworkConfig>> {
        let config = match read {
            Ok(config) => config,
            Err(error) => {
                if matches!(error, ManagerError::Registry(_)) {
                    self.retry_read(reader);
                }
                // The watch reports an unavailable registry.
                if was_requested || !matches!(error, ManagerError::Registry(RegistryError::Unavailable(..))) {
                    self.refuse(crate::chain(&error));
                }
                return None;
            }
        };
        if config == *running {
            self.update_state(|state| state.config_refused = None);
            return None;
        }
        if !was_requested && !self.options.follow_config {
            self.refuse("it waits for a reload or a restart".to_owned());
            return None;
        }
        if let Err(error) = self.reconfigure(&config) {
            if let BackendError::Kernel { .. } = error {
                self.retry_read(reader);
            }
            self.refuse(crate::chain(&error));
            return None;
        }
        let config = Arc::new(config);
        self.on_reconfigured(&config);
        Some(config)
    }

    /// Reconfigures the backend, if the host's lease fits the configuration.
    fn reconfigure(&mut self, config: &NetworkConfig) -> Result<(), BackendError> {
        let (Some(backend), Some(own)) = (self.backend.as_mut(), self.own.clone()) else {
            return Ok(());
        };
        check_lease(config, &own.subnet).map_err(BackendError::Host)?;
        let request = OpenRequest::new(config, &self.options.external)
            .with_before(Some(&own.attrs))
            .with_state_dir(self.options.state_dir.as_deref());
        backend.reconfigure(request)?;
        self.configure(&own);
        Ok(())
    }

    fn on_reconfigured(&mut self, config: &Arc<NetworkConfig>) {
        self.update_state(|state| {
            state.config = Some(Arc::clone(config));
            state.config_refused = None;
            state.dirty = Dirty::All;
        });
        self.update_running(|running| running.config = Arc::clone(config));
        self.look_again("the network config changed".to_owned());
        self.emit(NetworkEvent::Reconfigured(Arc::clone(config)));
    }

    fn retry_read(&mut self, reader: &mut ConfigReader) {
        let delay = self.options.retry.delay(reader.failures(), self.random.f64());
        reader.retry_at(Instant::now() + delay);
    }

    /// Reports once why a configuration isn't applied.
    fn refuse(&mut self, reason: String) {
        let is_known = self.state().config_refused.as_ref() == Some(&reason);
        if !is_known {
            self.update_state(|state| state.config_refused = Some(reason.clone()));
            self.emit(NetworkEvent::ConfigRefused(reason));
        }
    }
}

/// Checks that a host may keep its subnets under another configuration. Their length, and the range for new leases, don't
/// matter, because containers already use addresses of these subnets.
fn check_lease(config: &NetworkConfig, own: &SubnetKey) -> Result<(), String> {
    if config.contains_subnet(own) {
        return Ok(());
    }
    if (config.ipv4.is_some(), config.ipv6.is_some()) != (own.v4().is_some(), own.v6().is_some()) {
        return Err(format!(
            "its address families differ from those of the host's lease {own}; restart the daemon, and then the \
             containers, to apply it"
        ));
    }
    let outside = config.pools().zip(own.nets()).find(|(pool, net)| !pool.contains_subnet(*net));
    Err(outside.map_or_else(String::new, |(pool, net)| {
        format!(
            "the host's subnet {net} is outside {}; restart the daemon, and then the containers, to apply it",
            pool.network()
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_stays_while_it_is_inside_the_network() {
        let own = "10.5.7.0-24".parse().unwrap();
        let check = |config: &str| check_lease(&NetworkConfig::parse(config).unwrap(), &own);
        for config in [
            r#"{"Network":"10.5.0.0/16"}"#,
            r#"{"Network":"10.4.0.0/15"}"#,
            r#"{"Network":"10.5.0.0/16","SubnetLen":26}"#,
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.100.0"}"#,
        ] {
            assert_eq!(check(config), Ok(()), "{config}");
        }
        for (config, reason) in [
            (r#"{"Network":"10.6.0.0/16"}"#, "the host's subnet 10.5.7.0/24 is outside 10.6.0.0/16"),
            (r#"{"Network":"10.5.7.0/24"}"#, "the host's subnet 10.5.7.0/24 is outside 10.5.7.0/24"),
            (
                r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#,
                "its address families differ from those of the host's lease 10.5.7.0-24",
            ),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#,
                "its address families differ from those of the host's lease 10.5.7.0-24",
            ),
        ] {
            assert!(check(config).unwrap_err().starts_with(reason), "{config}: {:?}", check(config));
        }
    }
}
