//! A backend with a secret, a port per family, roaming endpoints and facts of its own about each peer keeps the promises
//! of every backend and drives a network: IPv4 over an IPv6 underlay.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod tunnel;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use flannel_core::{
    BackendAttrs, BackendError, ExternalInterface, Lease, LeaseAttrs, Network, NetworkConfig, NetworkOptions,
    OpenBackend, OpenRequest, PublicAddrs, StaticLeaseManager, SubnetKey,
};
use flannel_testing::Directory;
use flannel_testing::contract::backend::BackendSubject;

use tunnel::{Host, SECRET, data};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"tunnel"}}"#;

/// Returns the public addresses of a host with only this IPv6 address.
fn only_v6(address: Ipv6Addr) -> PublicAddrs {
    PublicAddrs { v4: None, v6: Some(address) }
}

/// Returns the IPv6 address of the host with this IPv4 address.
fn v6(v4: Ipv4Addr) -> Ipv6Addr {
    let [.., n] = v4.octets();
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into())
}

fn external() -> ExternalInterface {
    let v4 = Ipv4Addr::new(192, 168, 64, 1);
    ExternalInterface::new("eth0", 2, 1500, PublicAddrs { v4: Some(v4), v6: Some(v6(v4)) })
}

fn attrs_at(public: PublicAddrs) -> LeaseAttrs {
    BackendAttrs::new("tunnel".to_owned().into()).with_data(Some(data("0123456789abcdef"))).at(public)
}

fn subnet(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

/// A host, and the directory of its backend's state.
struct Subject {
    host: Host,
    state: Directory,
}

impl Subject {
    fn new() -> Self {
        Self { host: Host::default(), state: Directory::new().unwrap() }
    }
}

impl BackendSubject for Subject {
    fn opener(&self) -> Box<dyn OpenBackend> {
        Box::new(self.host.clone())
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig::parse(CONFIG).unwrap()
    }

    fn external(&self) -> ExternalInterface {
        external()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        attrs_at(only_v6(v6(public)))
    }

    /// A peer without an IPv6 address.
    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        Some(attrs_at(public.into()))
    }

    fn endpoint_of(&self, attrs: &LeaseAttrs) -> Option<IpAddr> {
        attrs.public.v6.map(Into::into)
    }

    fn state_dir(&self) -> Option<PathBuf> {
        Some(self.state.path().to_owned())
    }

    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        self.host.endpoints().into_iter().map(|(subnet, endpoint)| (subnet, endpoint.ip())).collect()
    }

    fn objects(&self) -> Vec<String> {
        self.host.objects()
    }

    fn add_foreign_objects(&self) {
        self.host.add_foreign("device wg0");
    }

    fn undo(&self, subnet: SubnetKey) {
        self.host.remove_peer(subnet);
    }

    fn block(&self, subnet: SubnetKey) {
        self.host.set_blocked(subnet, true);
    }

    fn unblock(&self, subnet: SubnetKey) {
        self.host.set_blocked(subnet, false);
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        vec![
            (r#"{"Type":"tunnel","Port":65536}"#, "Port"),
            (r#"{"Type":"tunnel","PortV6":"51821"}"#, "PortV6"),
        ]
    }

    fn other_options(&self) -> Vec<&'static str> {
        vec![r#"{"Type":"tunnel","Port":4000}"#]
    }
}

flannel_testing::backend_contract!(Subject::new());

#[test]
fn the_secret_outlives_restarts_and_stays_on_the_host() {
    let subject = Subject::new();
    let (config, external, state_dir) = (subject.config(), external(), subject.state_dir());
    let open = || {
        let request = OpenRequest::new(&config, &external).with_state_dir(state_dir.as_deref());
        subject.host.open(request).unwrap().attrs()
    };
    let first = open();
    let path = subject.state.join(SECRET);
    let secret = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        path.metadata().unwrap().permissions().mode() & 0o777,
        0o600,
        "only the owner may read the secret"
    );
    assert_eq!(open(), first, "the public key must be the same after a restart");
    assert!(!format!("{first:?}").contains(&secret), "the lease must not contain the secret");

    std::fs::remove_file(path).unwrap();
    assert_ne!(open(), first, "a host without its secret must get another public key");
    let outcome = subject.host.open(OpenRequest::new(&config, &external)).map(drop);
    assert!(
        matches!(&outcome, Err(BackendError::Host(reason)) if reason.contains("state directory")),
        "open without a state directory must say what is missing, got {outcome:?}"
    );
}

#[test]
fn each_family_of_the_overlay_has_a_port_of_its_own() {
    let subject = Subject::new();
    let text = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48",
        "Backend":{"Type":"tunnel","Port":4000,"PortV6":4001}}"#;
    let (config, external, state_dir) =
        (NetworkConfig::parse(text).unwrap(), external(), subject.state_dir());
    let request = OpenRequest::new(&config, &external).with_state_dir(state_dir.as_deref());
    let backend = subject.host.open(request).unwrap();
    let ports: Vec<_> = backend.devices().into_iter().map(|device| (device.name, device.port)).collect();
    assert_eq!(ports, [("tunnel4".to_owned(), Some(4000)), ("tunnel6".to_owned(), Some(4001))]);
}

#[tokio::test]
async fn a_network_runs_over_an_ipv6_underlay_and_shows_roaming_peers() {
    let subject = Subject::new();
    let manager = StaticLeaseManager::new(subject.config(), subnet("10.5.1.0-24")).unwrap();
    let (peer, home) = (subnet("10.5.2.0-24"), Ipv4Addr::new(192, 168, 64, 2));
    let lease = Lease::new(peer, attrs_at(only_v6(v6(home))));
    manager.set_peers([lease.clone()]);

    let mut options = NetworkOptions::new(manager.clone(), subject.host.clone(), external());
    options.state_dir = subject.state_dir();
    let (network, task) = Network::new(options);
    let task = tokio::spawn(task.run());
    tokio::time::timeout(Duration::from_secs(30), network.ready()).await.unwrap().unwrap();
    let public = network.lease().unwrap().attrs.public;
    assert_eq!(
        public,
        only_v6(external().public.v6.unwrap()),
        "the lease must contain the underlay's address only"
    );

    let facts = || network.status().peers.each.unwrap()[0].backend_facts.clone().unwrap_or_default();
    assert_eq!(facts().endpoint.unwrap().ip(), v6(home), "the endpoint must be that of the lease at first");
    assert_eq!(facts().last_handshake_age, None, "there must be no handshake at first");
    let away = "[fd00::99]:51820".parse().unwrap();
    subject.host.handshake(peer, away);
    assert_eq!(facts().endpoint, Some(away), "the status must show where the peer roamed");
    assert!(facts().last_handshake_age.is_some(), "the status must show the age of the last handshake");

    // Another peer joins, which makes the backend sync.
    let other = Lease::new(subnet("10.5.3.0-24"), attrs_at(only_v6(v6(Ipv4Addr::new(192, 168, 64, 3)))));
    manager.set_peers([lease, other]);
    while network.summary().peers.programmed < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(subject.host.endpoints()[&peer], away, "a sync must leave the roamed endpoint alone");
    drop((network, task));
}
