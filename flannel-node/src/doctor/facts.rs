//! The facts about a host that the checks judge.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use flannel_core::{ExternalInterface, Lease, NetworkConfig, NodeId, Plan, Snapshot, TunnelDevice};
use flannel_firewall::{BlockingRule, MissingRules, Packet};
use flannel_netlink::{Address, Link, Route};
use flannel_registry::CachedNetwork;

use super::finding::Cure;
use crate::backends::BackendRegistry;

use super::profile::{AgentProfile, RegistryCommands};

/// The facts about a host. [`gather`](super::gather()) reads them, [`examine`](super::examine) judges them.
#[derive(Debug)]
pub struct Facts {
    pub(crate) now: SystemTime,
    /// The options of the agent.
    pub(crate) options: AgentProfile,
    /// The backends of the agent.
    pub(crate) backends: BackendRegistry,
    /// The program of this process.
    pub(crate) program: PathBuf,
    /// The other agents in this network namespace.
    pub(crate) daemons: Vec<RunningAgent>,
    /// The running agent with these options.
    pub(crate) own_daemon: Option<RunningAgent>,
    /// Whether the agent, or else this process, has `CAP_NET_ADMIN`; `None` if `/proc` does not tell.
    pub(crate) may_change_network: Option<bool>,
    /// Whether this process has `CAP_NET_ADMIN`, which packet filters are shown to.
    pub(crate) may_look: bool,
    pub(crate) kernel: KernelFacts,
    /// Kernel settings by their path below `/proc/sys`.
    pub(crate) sysctls: BTreeMap<String, String>,
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// Routes of the main table.
    pub(crate) routes: Vec<Route>,
    /// The external interface, or why none was found.
    pub(crate) external: Result<ExternalInterface, String>,
    pub(crate) registry: RegistryFacts,
    pub(crate) cached: CachedFiles,
    /// The network, if its configuration is in the registry or in the cache.
    pub(crate) network: Option<NetworkFacts>,
    /// The peers.
    pub(crate) peers: Vec<Peer>,
    /// The plan of the backend, if it has one.
    pub(crate) plan: Option<Plan>,
    /// The number of peers that the running agent keeps although they left.
    pub(crate) held_peers: usize,
    /// The sockets on the tunnel's ports.
    pub(crate) sockets: Vec<Socket>,
    pub(crate) firewall: FirewallFacts,
    /// The links that a network manager manages.
    pub(crate) managed: Vec<ManagedLink>,
}

/// A process that runs an agent.
#[derive(Clone, Debug)]
pub struct RunningAgent {
    /// The process ID.
    pub pid: u32,
    /// The command line without passwords.
    pub command: String,
    /// Its systemd unit.
    pub unit: Option<String>,
    /// Its options, or why they are invalid.
    pub options: Result<AgentProfile, String>,
    /// The names of its network's devices, if known.
    pub devices: Vec<String>,
}

/// The features of the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelFacts {
    pub(crate) release: String,
    /// Whether it supports VXLAN devices; `None` if that cannot be tested.
    pub(crate) has_vxlan: Option<bool>,
    /// Whether it supports nftables.
    pub(crate) has_nftables: bool,
    /// Why TUN devices cannot be created, if so.
    pub(crate) no_tun: Option<String>,
    /// Devices with checksum offload on a kernel that computes wrong checksums.
    pub(crate) wrong_checksums: Vec<String>,
}

/// The contents of the registry.
#[derive(Clone, Debug)]
pub struct RegistryFacts {
    /// The name of the registry.
    pub name: String,
    /// Writes commands that change it by hand.
    pub commands: Arc<dyn RegistryCommands>,
    /// The network configuration.
    pub config: ConfigFact,
    /// All leases, if they could be read.
    pub leases: Option<Snapshot>,
    /// The clock of the registry, if it reports the time.
    pub clock: Option<ClockReading>,
    /// The readable certificates that the agent uses.
    pub certificates: Vec<Certificate>,
}

/// A certificate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Certificate {
    /// The file.
    pub path: PathBuf,
    /// The file of the key, if the agent owns the certificate.
    pub key: Option<PathBuf>,
    /// The subject (RFC 4514), such as `CN=etcd-1`.
    pub subject: String,
    /// The start of its validity.
    pub not_before: SystemTime,
    /// The end of its validity.
    pub not_after: SystemTime,
}

/// The result of reading the network configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ConfigFact {
    /// The options of the registry are invalid; with the cure.
    BadOptions(String, Cure),
    /// The registry does not respond; with the cure.
    Silent(String, Cure),
    /// The registry denies access; with the cure.
    Refused(String, Cure),
    /// The registry has no configuration.
    Missing,
    /// The configuration is invalid.
    Invalid(String),
    /// The configuration is valid.
    Valid(NetworkConfig),
}

/// The clock of the registry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClockReading {
    /// The member that reported it.
    pub member: String,
    /// Its time.
    pub there: SystemTime,
    /// The time of this host at the request.
    pub asked: SystemTime,
    /// The time of this host at the response.
    pub answered: SystemTime,
}

/// The files of an earlier run.
#[derive(Clone, Debug, Default)]
pub(crate) struct CachedFiles {
    /// The text of `subnet.env`.
    pub(crate) subnet_file: Option<String>,
    /// The cached network.
    pub(crate) network: Option<CachedNetwork>,
    /// The ID of the host.
    pub(crate) node: Option<NodeId>,
}

/// The network of the host.
#[derive(Clone, Debug)]
pub(crate) struct NetworkFacts {
    pub(crate) config: NetworkConfig,
    /// The host's lease in the registry, or else in the cache.
    pub(crate) own: Option<Lease>,
    /// The desired tunnel devices.
    pub(crate) devices: Vec<TunnelDevice>,
    /// The largest packet, in bytes, that a container may send.
    pub(crate) mtu: u32,
    /// The UDP ports of the tunnel.
    pub(crate) ports: Vec<u16>,
    /// The desired text of `subnet.env`.
    pub(crate) subnet_file: Option<String>,
}

/// A peer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) lease: Arc<Lease>,
    /// The link that routes to its public address; `None` without a route.
    pub(crate) leaves_by: Option<u32>,
    pub(crate) answer: HostResponse,
}

/// The response of a host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HostResponse {
    /// The host responded.
    Alive,
    /// The link or a router reported the host as unreachable.
    NoHost,
    /// No response, perhaps because of a firewall.
    Silent,
}

/// A UDP socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Socket {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// The process ID and name of the owner; `None` for the kernel's sockets.
    pub(crate) owner: Option<(u32, String)>,
}

/// The state of the host's packet filters.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirewallFacts {
    /// The rules that drop packets of the network.
    pub(crate) blocking_rules: Vec<(Packet, BlockingRule)>,
    /// The missing rules of the network.
    pub(crate) missing: Vec<MissingRules>,
    /// The package of a required program that is not installed.
    pub(crate) lacks: Option<String>,
    /// Why iptables cannot show a table with rules of the network.
    pub(crate) not_shown: Option<String>,
    /// Why packet filters could not be read.
    pub(crate) failures: Vec<String>,
    /// Whether kube-proxy has rules.
    pub(crate) has_kube_proxy: bool,
    /// Whether ufw has rules.
    pub(crate) has_ufw: bool,
}

/// A link that a network manager manages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ManagedLink {
    pub(crate) manager: Manager,
    pub(crate) link: String,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Manager {
    Networkd,
    NetworkManager,
}

impl Facts {
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    pub(crate) fn link_name(&self, index: u32) -> &str {
        self.links.iter().find(|link| link.index == index).map_or("?", |link| &link.name)
    }

    pub(crate) fn sysctl(&self, path: &str) -> Option<&str> {
        self.sysctls.get(path).map(String::as_str)
    }

    /// Returns the links of the existing tunnel devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Link> {
        let wanted = self.network.iter().flat_map(|network| &network.devices);
        wanted.filter_map(|device| self.link(&device.name))
    }

    /// Returns the host's lease.
    pub(crate) fn own(&self) -> Option<&Lease> {
        self.network.as_ref()?.own.as_ref()
    }

    /// Returns the bridges of the host's pods: those with an address in its subnet.
    pub(crate) fn pod_bridges(&self) -> impl Iterator<Item = &Link> {
        let is_pods = |link: &&Link| {
            link.kind == flannel_netlink::LinkKind::Bridge
                && self.addresses.iter().any(|address| {
                    address.index == link.index
                        && self.own().is_some_and(|own| own.subnet.contains(address.net.addr()))
                })
        };
        self.links.iter().filter(is_pods)
    }

    /// Returns the link that the main table routes an overlay address to.
    pub(crate) fn outgoing_link(&self, address: IpAddr) -> Option<String> {
        let fits =
            |route: &&Route| route.destination.contains(&address) && route.destination.prefix_len() > 0;
        let best = self.routes.iter().filter(fits).max_by_key(|route| route.destination.prefix_len())?;
        best.index.map(|index| self.link_name(index).to_owned())
    }

    /// Returns whether the agent runs.
    pub(crate) fn is_running(&self) -> bool {
        self.own_daemon.is_some()
    }
}

/// Returns the stale one of two conflicting leases: not the host's own, or else the older one.
pub(crate) fn leftover<'l>(facts: &Facts, one: &'l Lease, other: &'l Lease) -> &'l Lease {
    let own = facts.own().map(|own| own.subnet);
    if own == Some(one.subnet) || (own != Some(other.subnet) && other.revision < one.revision) {
        other
    } else {
        one
    }
}

#[cfg(test)]
pub(super) mod tests {
    use flannel_backend_vxlan::OpenVxlan;
    use flannel_core::BackendDescriptor as _;

    use super::*;
    use crate::doctor::profile::AgentRegistry;

    /// A registry that no check reads.
    #[derive(Debug)]
    struct TestRegistry;

    #[async_trait::async_trait]
    impl AgentRegistry for TestRegistry {
        fn networks(&self) -> Vec<String> {
            vec!["test".to_owned()]
        }

        fn cache_key(&self) -> &str {
            "test"
        }

        async fn read(&self) -> RegistryFacts {
            unreachable!("checks read facts only")
        }
    }

    impl RegistryCommands for TestRegistry {
        fn remove_record(&self, key: &str) -> String {
            format!("remove {key}")
        }

        fn write_config(&self, text: &str) -> String {
            format!("write {text}")
        }
    }

    /// A host with a running agent and without faults.
    pub(in crate::doctor) fn healthy() -> Facts {
        let options = AgentProfile {
            subnet_file: "/run/flannel/subnet.env".into(),
            cache: "/run/flannel/subnet.env.cache".into(),
            node_id: "/run/flannel/subnet.env.node-id".into(),
            status_socket: None,
            rules: flannel_firewall::RuleOptions::default(),
            restrict_tunnel_port: false,
            external: Arc::new(|_| Err("not chosen".to_owned())),
            registry: Arc::new(TestRegistry),
        };
        let config =
            NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#).expect("valid");
        let own = lease("10.5.1.0-24", "192.168.64.1");
        let external = ExternalInterface::new("eth0", 2, 1500, own.attrs.public);
        let vxlan = OpenVxlan::new(flannel_netlink::Namespace::current().expect("the namespace"));
        let network = NetworkFacts {
            config: config.clone(),
            own: Some(own.clone()),
            devices: vxlan.data_path(&config, &external).expect("valid").devices,
            mtu: 1450,
            ports: vec![8472],
            subnet_file: None,
        };
        let daemon = RunningAgent {
            pid: 100,
            command: "flanneld".to_owned(),
            unit: None,
            options: Ok(options.clone()),
            devices: Vec::new(),
        };
        let mut leases = Snapshot::default();
        leases.leases.push(Arc::new(own));
        Facts {
            now: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000),
            backends: BackendRegistry::new().with(vxlan),
            program: "/usr/sbin/flanneld".into(),
            daemons: Vec::new(),
            own_daemon: Some(daemon),
            may_change_network: Some(true),
            may_look: true,
            kernel: KernelFacts { has_vxlan: Some(true), has_nftables: true, ..KernelFacts::default() },
            sysctls: BTreeMap::new(),
            links: Vec::new(),
            addresses: Vec::new(),
            routes: Vec::new(),
            external: Ok(external),
            registry: RegistryFacts {
                name: "etcd v3 at http://127.0.0.1:2379".to_owned(),
                commands: Arc::new(TestRegistry),
                config: ConfigFact::Valid(config),
                leases: Some(leases),
                clock: None,
                certificates: Vec::new(),
            },
            cached: CachedFiles::default(),
            network: Some(network),
            peers: Vec::new(),
            plan: None,
            held_peers: 0,
            sockets: Vec::new(),
            firewall: FirewallFacts::default(),
            managed: Vec::new(),
            options,
        }
    }

    /// A lease of a VXLAN host.
    pub(in crate::doctor) fn lease(key: &str, public: &str) -> Lease {
        let record = format!(r#"{{"PublicIP":"{public}","BackendType":"vxlan"}}"#);
        let (revision, term) = (flannel_core::Revision(1), flannel_core::Term::Limited);
        flannel_core::read_record(key, record.as_bytes(), revision, term).expect("a record")
    }
}
