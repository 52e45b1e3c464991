//! The table of flags: the only place that lists them. `-help`, the environment variables, the man page and `docs/flags.md`
//! derive from it.
//!
//! A new flag is a row here, a field in [`Settings`] (the value as given) and, if it needs checking, one in
//! [`Options`](super::Options) (the checked value).

use std::time::Duration;

use super::Settings;
use crate::flags::{Flag, Kind};

/// Flags that belong together.
pub(crate) struct Section {
    /// The heading.
    pub(crate) title: &'static str,
    /// The flags, in reading order.
    pub(crate) flags: &'static [Flag<Settings>],
}

/// Every flag of upstream flannel, and the additional flags of this daemon.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        title: "Registry",
        flags: &[
            text(
                "etcd-endpoints",
                |s| &mut s.etcd_endpoints,
                "comma-separated URLs of the etcd servers; the default scheme is http, or https with a client \
                 certificate",
            ),
            text("etcd-prefix", |s| &mut s.etcd_prefix, "etcd key under which the network is stored"),
            text(
                "etcd-api",
                |s| &mut s.etcd_api,
                "etcd API to use: v2, v3, or auto for the one whose store has the network config",
            ),
            text(
                "etcd-cafile",
                |s| &mut s.etcd_cafile,
                "file with the CA certificates that etcd's certificate is verified against (PEM); default: \
                 those of the system",
            ),
            text(
                "etcd-certfile",
                |s| &mut s.etcd_certfile,
                "file with the client certificate for etcd (PEM)",
            ),
            text(
                "etcd-keyfile",
                |s| &mut s.etcd_keyfile,
                "file with the key of the client certificate (PEM)",
            ),
            text("etcd-username", |s| &mut s.etcd_username, "etcd user name"),
            text(
                "etcd-password",
                |s| &mut s.etcd_password,
                "password of the etcd user; set FLANNELD_ETCD_PASSWORD instead, because other users can see \
                 the command line",
            ),
        ],
    },
    Section {
        title: "External interface",
        flags: &[
            list(
                "iface",
                |s| &mut s.iface,
                "external interface, by name or address; may be repeated, and the first match is used; \
                 default: the interface of the default route",
            ),
            list(
                "iface-regex",
                |s| &mut s.iface_regex,
                "external interface, by a regular expression for its addresses or its name; may be repeated; \
                 tried after -iface",
            ),
            text(
                "iface-can-reach",
                |s| &mut s.iface_can_reach,
                "external interface, by an address that the kernel routes through it; tried after -iface and \
                 -iface-regex",
            ),
            text(
                "public-ip",
                |s| &mut s.public_ip,
                "IPv4 address at which peers reach this host; default: the address of the external interface",
            ),
            text(
                "public-ipv6",
                |s| &mut s.public_ipv6,
                "IPv6 address at which peers reach this host; default: the address of the external interface",
            ),
        ],
    },
    Section {
        title: "Lease and network",
        flags: &[
            text(
                "subnet-file",
                |s| &mut s.subnet_file,
                "file to which the subnet and MTU are written for the container runtime",
            ),
            duration(
                "subnet-lease-ttl",
                |s| &mut s.lease_ttl,
                "how long the subnet lease lasts without renewal, from 1m to 8760h; after that, other hosts \
                 may lease the subnet",
            ),
            optional_int(
                "subnet-lease-renew-margin",
                |s| &mut s.renew_margin,
                "renew the subnet lease at the latest when this many minutes of it are left, from 1 to 1439; \
                 default: renew it after a third of its time",
            ),
            int(
                "mass-expiry-hold",
                |s| &mut s.mass_expiry_hold,
                "seconds for which to keep peers when more than half of them disappear at once, which suggests \
                 a registry fault; 0 keeps none",
            ),
            switch(
                "follow-config",
                |s| &mut s.follow_config,
                "apply a changed network config as soon as etcd reports it; if false, only on SIGHUP or at a \
                 restart, so that hosts can be moved one by one",
            ),
            switch(
                "release-on-exit",
                |s| &mut s.release_on_exit,
                "when stopped, remove the device, routes and subnet file, and release the subnet lease unless \
                 it is a reservation; if false, all stay and traffic continues",
            ),
            switch(
                "keep-udp-device",
                |s| &mut s.keep_udp_device,
                "have systemd keep the device and sockets of the udp backend while the daemon restarts, so \
                 that no packet is lost; the unit needs FileDescriptorStoreMax=3",
            ),
        ],
    },
    Section {
        title: "Firewall",
        flags: &[
            switch(
                "ip-masq",
                |s| &mut s.ip_masq,
                "masquerade traffic from containers to destinations outside of the network",
            ),
            switch(
                "ip-masq-fully-random-disable",
                |s| &mut s.ip_masq_fully_random_disable,
                "keep the source ports of masqueraded connections where possible",
            ),
            switch(
                "iptables-forward-rules",
                |s| &mut s.iptables_forward_rules,
                "accept forwarded packets of the network, whatever the policy of the FORWARD chain",
            ),
            int(
                "iptables-resync",
                |s| &mut s.iptables_resync,
                "seconds between checks of the firewall rules when the kernel reports no change",
            ),
            switch(
                "ip-blackhole-route",
                |s| &mut s.ip_blackhole_route,
                "drop packets to containers that do not exist, with a blackhole route for the host's subnet",
            ),
            switch(
                "restrict-tunnel-port",
                |s| &mut s.restrict_tunnel_port,
                "drop packets to the tunnel's UDP port that do not come from a peer (needs nft)",
            ),
        ],
    },
    Section {
        title: "Health and status",
        flags: &[
            text(
                "healthz-ip",
                |s| &mut s.healthz_ip,
                "address on which to serve /healthz, /readyz and /metrics, with -healthz-port",
            ),
            int("healthz-port", |s| &mut s.healthz_port, "port on which to serve them; 0 disables them"),
            text(
                "status-socket",
                |s| &mut s.status_socket,
                "Unix socket on which root can read the status; default: the subnet file's path with .sock \
                 appended; off disables it",
            ),
            duration(
                "mesh-probe-interval",
                |s| &mut s.mesh_probe_interval,
                "how often to probe each peer inside and outside of the tunnel, from 1s to 24h, at most ten \
                 peers per second; 0s disables probes and replies",
            ),
            int(
                "mesh-probe-port",
                |s| &mut s.mesh_probe_port,
                "UDP port, on the overlay address, for probes between hosts; the same on all hosts",
            ),
        ],
    },
    Section {
        title: "Kubernetes",
        flags: &[
            switch(
                "kube-subnet-mgr",
                |s| &mut s.kube_subnet_mgr,
                "store leases in Kubernetes instead of etcd; not supported yet, and rejected",
            ),
            text(
                "kube-api-url",
                |s| &mut s.kube_api_url,
                "URL of the Kubernetes API server (only with -kube-subnet-mgr)",
            ),
            text(
                "kubeconfig-file",
                |s| &mut s.kubeconfig_file,
                "kubeconfig file (only with -kube-subnet-mgr)",
            ),
            text(
                "kube-annotation-prefix",
                |s| &mut s.kube_annotation_prefix,
                "prefix of the node annotations (only with -kube-subnet-mgr)",
            ),
            text(
                "net-config-path",
                |s| &mut s.net_config_path,
                "file with the network config (only with -kube-subnet-mgr)",
            ),
            switch(
                "set-node-network-unavailable",
                |s| &mut s.set_node_network_unavailable,
                "set the NetworkUnavailable condition of the node (only with -kube-subnet-mgr)",
            ),
        ],
    },
    Section {
        title: "Log and version",
        flags: &[
            int(
                "v",
                |s| &mut s.verbosity,
                "log verbosity: 0 logs changes of state, 1 to 3 add decisions, 4 and above everything",
            ),
            text(
                "vmodule",
                |s| &mut s.vmodule,
                "verbosity of single source files, as a list such as iface=1,n*=4; raises that of -v",
            ),
            text(
                "log_backtrace_at",
                |s| &mut s.log_backtrace_at,
                "accepted for compatibility with upstream, and ignored",
            ),
            text(
                "log-format",
                |s| &mut s.log_format,
                "text, in glog's format, or json, one object per event",
            ),
            switch("version", |s| &mut s.version, "print the version and exit"),
        ],
    },
];

/// Returns the flags of the daemon.
pub(crate) fn flags() -> Vec<Flag<Settings>> {
    SECTIONS.iter().flat_map(|section| section.flags).copied().collect()
}

/// Returns the flags of a command that takes those of the daemon: all but `-version`, and [`JSON`].
pub(super) fn daemon_flags_and_json() -> Vec<Flag<Settings>> {
    let mut flags = flags();
    flags.retain(|flag| flag.name != "version");
    flags.push(JSON);
    flags
}

/// A flag of several commands.
pub(super) const JSON: Flag<Settings> =
    switch("json", |s| &mut s.json, "print JSON, whose members are stable");

/// A flag of several commands.
pub(super) const COLOR: Flag<Settings> = text(
    "color",
    |s| &mut s.color,
    "auto, which colours output to a terminal unless NO_COLOR is set; always; or never",
);

type Field<T> = fn(&mut Settings) -> &mut T;

const fn switch(name: &'static str, field: Field<bool>, description: &'static str) -> Flag<Settings> {
    Flag { name, kind: Kind::Bool(field), description }
}

const fn int(name: &'static str, field: Field<i64>, description: &'static str) -> Flag<Settings> {
    Flag { name, kind: Kind::Int(field), description }
}

const fn optional_int(
    name: &'static str,
    field: Field<Option<i64>>,
    description: &'static str,
) -> Flag<Settings> {
    Flag { name, kind: Kind::OptionalInt(field), description }
}

const fn duration(name: &'static str, field: Field<Duration>, description: &'static str) -> Flag<Settings> {
    Flag { name, kind: Kind::Duration(field), description }
}

const fn text(name: &'static str, field: Field<String>, description: &'static str) -> Flag<Settings> {
    Flag { name, kind: Kind::Text(field), description }
}

const fn list(name: &'static str, field: Field<Vec<String>>, description: &'static str) -> Flag<Settings> {
    Flag { name, kind: Kind::List(field), description }
}
