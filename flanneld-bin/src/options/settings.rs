//! The values of the flags as they were given, and those that they have when they were not.

use std::time::Duration;

/// The values of the flags as they were given.
pub(crate) struct Settings {
    pub(super) etcd_endpoints: String,
    pub(super) etcd_prefix: String,
    pub(super) etcd_keyfile: String,
    pub(super) etcd_certfile: String,
    pub(super) etcd_cafile: String,
    pub(super) etcd_username: String,
    pub(super) etcd_password: String,
    pub(super) etcd_api: String,
    pub(super) iface: Vec<String>,
    pub(super) public_ip: String,
    pub(super) public_ipv6: String,
    pub(super) subnet_file: String,
    pub(super) ip_masq: bool,
    pub(super) ip_masq_fully_random_disable: bool,
    pub(super) ip_blackhole_route: bool,
    pub(super) iptables_forward_rules: bool,
    pub(super) iptables_resync: i64,
    pub(super) restrict_tunnel_port: bool,
    pub(super) version: bool,
    pub(super) verbosity: i64,
    pub(super) mass_expiry_hold: i64,
    pub(super) lease_ttl: Duration,
    pub(super) renew_margin: Option<i64>,
    pub(super) release_on_exit: bool,
    pub(super) dry_run: bool,
    pub(super) json: bool,
    pub(super) healthz_ip: String,
    pub(super) healthz_port: i64,
    pub(super) status_socket: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            etcd_endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379".to_owned(),
            etcd_prefix: "/coreos.com/network".to_owned(),
            etcd_keyfile: String::new(),
            etcd_certfile: String::new(),
            etcd_cafile: String::new(),
            etcd_username: String::new(),
            etcd_password: String::new(),
            etcd_api: "auto".to_owned(),
            iface: Vec::new(),
            public_ip: String::new(),
            public_ipv6: String::new(),
            subnet_file: "/run/flannel/subnet.env".to_owned(),
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            ip_blackhole_route: false,
            iptables_forward_rules: true,
            iptables_resync: 5,
            restrict_tunnel_port: false,
            version: false,
            verbosity: 0,
            mass_expiry_hold: 300,
            lease_ttl: Duration::from_secs(86_400),
            renew_margin: None,
            release_on_exit: false,
            dry_run: false,
            json: false,
            healthz_ip: "0.0.0.0".to_owned(),
            healthz_port: 0,
            status_socket: String::new(),
        }
    }
}
