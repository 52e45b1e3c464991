//! Facts about the registry: the config, the leases, and its clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flannel_core::{BoxError, NetworkConfig, RegistryError, SubnetRegistry, chain};
use flannel_node::doctor::{
    AgentRegistry, Certificate, ClockReading, ConfigFact, Cure, RegistryCommands, RegistryFacts, quoted,
};
use flannel_registry::{EtcdRegistry, certificate_dates};
use tokio::time::timeout;

use super::etcdctl::Etcdctl;
use crate::options::{EtcdApi, EtcdFiles, EtcdOptions};
use crate::registry;

/// A reachable etcd responds in milliseconds, but a client that tries each member takes seconds for each that is down.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The etcd of a daemon.
#[derive(Debug)]
pub(super) struct EtcdAgentRegistry {
    pub(super) options: EtcdOptions,
    pub(super) api: EtcdApi,
}

#[async_trait]
impl AgentRegistry for EtcdAgentRegistry {
    fn networks(&self) -> Vec<String> {
        let EtcdOptions { endpoints, prefix, .. } = &self.options;
        endpoints.iter().map(|endpoint| format!("{endpoint} {prefix}")).collect()
    }

    fn cache_key(&self) -> &str {
        &self.options.prefix
    }

    async fn read(&self) -> RegistryFacts {
        let etcd = &self.options;
        let certificates = certificates(&etcd.files);
        let (registry, etcdctl) = match open(etcd, self.api) {
            Ok(opened) => opened,
            Err(error) => {
                let (name, commands) = (etcd.endpoints.join(", "), Arc::new(Etcdctl::new(etcd, false)));
                let config = ConfigFact::BadOptions(chain(error.as_ref()), other_options(etcd));
                return RegistryFacts { name, commands, config, leases: None, clock: None, certificates };
            }
        };
        let (config, clock) = tokio::join!(config(&*registry, etcd), clock(etcd));
        let mut leases = None;
        if matches!(config, ConfigFact::Valid(_) | ConfigFact::Invalid(_)) {
            leases = timeout(TIMEOUT, registry.list()).await.ok().and_then(Result::ok);
        }
        let name = registry.describe();
        RegistryFacts { name, commands: etcdctl(), config, leases, clock, certificates }
    }

    async fn config(&self) -> Option<NetworkConfig> {
        let (registry, _) = open(&self.options, self.api).ok()?;
        match config(&*registry, &self.options).await {
            ConfigFact::Valid(config) => Some(config),
            ConfigFact::BadOptions(..)
            | ConfigFact::Silent(..)
            | ConfigFact::Refused(..)
            | ConfigFact::Missing
            | ConfigFact::Invalid(_) => None,
        }
    }
}

/// Opens the registry as the daemon does. The second value returns the commands; with `auto`, they depend on the store that
/// the first read found.
#[expect(clippy::type_complexity, reason = "used once")]
fn open(
    etcd: &EtcdOptions,
    api: EtcdApi,
) -> Result<(Arc<dyn SubnetRegistry>, Box<dyn Fn() -> Arc<dyn RegistryCommands> + Send>), BoxError> {
    let options = etcd.clone();
    if api == EtcdApi::Auto {
        let registry = EtcdRegistry::new(registry::v3(etcd)?, registry::v2(etcd)?);
        let chosen = registry.clone();
        return Ok((
            Arc::new(registry),
            Box::new(move || Arc::new(Etcdctl::new(&options, chosen.uses_v2()))),
        ));
    }
    let is_v2 = api == EtcdApi::V2;
    Ok((registry::open(etcd, api)?, Box::new(move || Arc::new(Etcdctl::new(&options, is_v2)))))
}

async fn config(registry: &dyn SubnetRegistry, etcd: &EtcdOptions) -> ConfigFact {
    match timeout(TIMEOUT, registry.config()).await {
        Err(_) => ConfigFact::Silent(
            format!("{}: no response within {TIMEOUT:?}", registry.describe()),
            start_etcd(etcd),
        ),
        Ok(Err(error @ RegistryError::Refused(..))) => ConfigFact::Refused(chain(&error), authenticate(etcd)),
        Ok(Err(error)) => ConfigFact::Silent(chain(&error), start_etcd(etcd)),
        Ok(Ok(None)) => ConfigFact::Missing,
        Ok(Ok(Some(text))) => match NetworkConfig::parse(&text) {
            Ok(config) => ConfigFact::Valid(config),
            Err(error) => ConfigFact::Invalid(error.to_string()),
        },
    }
}

/// Reads the clock of an etcd member.
async fn clock(etcd: &EtcdOptions) -> Option<ClockReading> {
    let registry = registry::v2(etcd).ok()?;
    let before = wall_clock();
    let (there, member) = timeout(TIMEOUT, registry.server_time()).await.ok()?.ok()?;
    Some(ClockReading { member, there: there?, asked: before, answered: wall_clock() })
}

/// Returns the time of this host.
#[expect(clippy::disallowed_methods, reason = "the check compares wall clocks")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

fn certificates(files: &EtcdFiles) -> Vec<Certificate> {
    let paths = files.authorities.iter().chain(&files.certificate);
    // Opening the registry reports files that cannot be read.
    let dates = paths.flat_map(|path| certificate_dates(path).unwrap_or_default());
    let certificate = |dates: flannel_registry::CertificateDates| Certificate {
        key: files.key.clone().filter(|_| files.certificate.as_ref() == Some(&dates.path)),
        path: dates.path,
        subject: dates.subject,
        not_before: dates.not_before,
        not_after: dates.not_after,
    };
    dates.map(certificate).collect()
}

fn other_options(etcd: &EtcdOptions) -> Cure {
    let EtcdFiles { authorities, certificate, key } = &etcd.files;
    let given = [
        (authorities.is_some(), "-etcd-cafile=FILE"),
        (certificate.is_some() || key.is_some(), "-etcd-certfile=FILE"),
        (certificate.is_some() || key.is_some(), "-etcd-keyfile=FILE"),
    ];
    let flags: Vec<&str> =
        given.into_iter().filter(|(is_given, _)| *is_given).map(|(_, flag)| flag).collect();
    if flags.is_empty() {
        Cure::start_with(["-etcd-endpoints=http://ADDRESS:2379"])
    } else {
        Cure::start_with(flags)
    }
}

/// Commands that start etcd on the hosts of the endpoints, one each.
fn start_etcd(etcd: &EtcdOptions) -> Cure {
    let host = |endpoint: &String| {
        let rest = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, rest)| rest);
        let host = rest
            .rsplit_once(':')
            .filter(|(_, port)| port.parse::<u16>().is_ok())
            .map_or(rest, |(host, _)| host);
        host.trim_matches(['[', ']']).to_owned()
    };
    let mut hosts: Vec<String> = etcd.endpoints.iter().map(host).collect();
    hosts.dedup();
    let is_local = |host: &str| host == "localhost" || host.starts_with("127.") || host == "::1";
    let start = |host: &String| match is_local(host) {
        true => "systemctl start etcd".to_owned(),
        false => format!("ssh {} systemctl start etcd", quoted(host)),
    };
    let mut cure = Cure::run(hosts.iter().map(start));
    if hosts.iter().all(|host| is_local(host)) {
        cure.flags.push("-etcd-endpoints=http://ADDRESS:2379".to_owned());
    }
    cure
}

fn authenticate(etcd: &EtcdOptions) -> Cure {
    if etcd.files.certificate.is_some() {
        return Cure::start_with(["-etcd-certfile=FILE", "-etcd-keyfile=FILE"]);
    }
    Cure::start_with(["-etcd-username=NAME", "-etcd-password=PASSWORD"])
}
