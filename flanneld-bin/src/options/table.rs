//! The table of the flags: the one place that says which there are. `-help`, the variables, the man page and
//! `docs/flags.md` are made of it.
//!
//! A new flag is a row here, a field in [`Settings`] (the value as it was given) and, if it needs checking, one in
//! [`Options`](super::Options) (the value that is used).

use std::time::Duration;

use super::Settings;
use crate::flags::{Flag, Kind};

/// Flags that belong together.
pub(crate) struct Section {
    /// What they are about.
    pub(crate) title: &'static str,
    /// The flags, in the order in which one wants to read about them.
    pub(crate) flags: &'static [Flag<Settings>],
}

/// Every flag of upstream flannel, and those that only this daemon has.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        title: "Where the leases are",
        flags: &[
            text(
                "etcd-endpoints",
                |s| &mut s.etcd_endpoints,
                "etcd servers, as URLs separated by commas; http:// may be left out, and so may https:// if \
                 there is a client certificate",
            ),
            text("etcd-prefix", |s| &mut s.etcd_prefix, "key in etcd under which the network lives"),
            text(
                "etcd-api",
                |s| &mut s.etcd_api,
                "interface of etcd to use: v2, v3, or auto for the one that the network config is found in",
            ),
            text(
                "etcd-cafile",
                |s| &mut s.etcd_cafile,
                "authorities to trust for etcd's certificate (PEM); without it, those of this system",
            ),
            text("etcd-certfile", |s| &mut s.etcd_certfile, "client certificate to show to etcd (PEM)"),
            text("etcd-keyfile", |s| &mut s.etcd_keyfile, "key of that certificate (PEM)"),
            text("etcd-username", |s| &mut s.etcd_username, "user of etcd to act as"),
            text(
                "etcd-password",
                |s| &mut s.etcd_password,
                "password of that user; better given as FLANNELD_ETCD_PASSWORD, which other users cannot see",
            ),
        ],
    },
    Section {
        title: "How other hosts reach this one",
        flags: &[
            list(
                "iface",
                |s| &mut s.iface,
                "external interface, by name or by one of its addresses; may be given several times, the first \
                 that fits is used; without it, the interface of the default route",
            ),
            list(
                "iface-regex",
                |s| &mut s.iface_regex,
                "external interface, by a regular expression that one of its addresses or its name fits; may be \
                 given several times; tried after -iface",
            ),
            text(
                "iface-can-reach",
                |s| &mut s.iface_can_reach,
                "external interface, by an address to which the kernel would send through it; tried after -iface \
                 and -iface-regex",
            ),
            text(
                "public-ip",
                |s| &mut s.public_ip,
                "IPv4 address at which peers reach this host, if not the address of the external interface",
            ),
            text(
                "public-ipv6",
                |s| &mut s.public_ipv6,
                "IPv6 address at which peers reach this host, if not the address of the external interface",
            ),
        ],
    },
    Section {
        title: "The lease and what is made of it",
        flags: &[
            text(
                "subnet-file",
                |s| &mut s.subnet_file,
                "file that tells the container runtime its subnet and MTU",
            ),
            duration(
                "subnet-lease-ttl",
                |s| &mut s.lease_ttl,
                "how long the subnet lease lasts when this host no longer renews it, 1m to 8760h; then others \
                 may get the subnet",
            ),
            optional_int(
                "subnet-lease-renew-margin",
                |s| &mut s.renew_margin,
                "minutes, 1 to 1439, that are left of the subnet lease at the latest when it is renewed; \
                 without it, the lease is renewed when a third of its time is over",
            ),
            int(
                "mass-expiry-hold",
                |s| &mut s.mass_expiry_hold,
                "seconds for which peers are kept when more than half of them leave at once, because then the \
                 registry is more likely at fault than they are; 0 never keeps any",
            ),
            switch(
                "follow-config",
                |s| &mut s.follow_config,
                "take in another network config as soon as etcd tells of it; without it, only when told to by SIGHUP \
                 or at a restart, so that hosts can be moved one after the other",
            ),
            switch(
                "release-on-exit",
                |s| &mut s.release_on_exit,
                "when told to end, remove device, routes and subnet file, and give the subnet lease back, \
                 unless it is a reservation; without it all stay, and traffic goes on",
            ),
            switch(
                "keep-udp-device",
                |s| &mut s.keep_udp_device,
                "have systemd keep the device and the sockets of the udp backend while this daemon restarts, so that \
                 packets wait and none is lost; the unit needs FileDescriptorStoreMax=3",
            ),
        ],
    },
    Section {
        title: "Firewall",
        flags: &[
            switch("ip-masq", |s| &mut s.ip_masq, "masquerade what containers send out of the network"),
            switch(
                "ip-masq-fully-random-disable",
                |s| &mut s.ip_masq_fully_random_disable,
                "let masqueraded connections keep their source ports where they can",
            ),
            switch(
                "iptables-forward-rules",
                |s| &mut s.iptables_forward_rules,
                "accept forwarded packets of the network, whatever the policy of this host",
            ),
            int(
                "iptables-resync",
                |s| &mut s.iptables_resync,
                "seconds after which firewall rules are looked at even if the kernel told of no change",
            ),
            switch(
                "ip-blackhole-route",
                |s| &mut s.ip_blackhole_route,
                "end packets to containers that do not exist here, by a route for the own subnet",
            ),
            switch(
                "restrict-tunnel-port",
                |s| &mut s.restrict_tunnel_port,
                "drop packets to the UDP port of the tunnel that do not come from a peer (needs nft)",
            ),
        ],
    },
    Section {
        title: "Health and status",
        flags: &[
            text(
                "healthz-ip",
                |s| &mut s.healthz_ip,
                "address to serve /healthz, /readyz and /metrics at, with -healthz-port",
            ),
            int("healthz-port", |s| &mut s.healthz_port, "port to serve them at; 0 serves them nowhere"),
            text(
                "status-socket",
                |s| &mut s.status_socket,
                "unix socket over which root asks for the status; without it, the path of the subnet file with .sock \
                 behind it; off for none",
            ),
            duration(
                "mesh-probe-interval",
                |s| &mut s.mesh_probe_interval,
                "how often each other host is probed inside and outside of the tunnel, 1s to 24h, with at most ten hosts a \
                 second; 0s probes none and answers none",
            ),
            int(
                "mesh-probe-port",
                |s| &mut s.mesh_probe_port,
                "UDP port on the address in the overlay at which hosts that probe answer each other, the same on all",
            ),
        ],
    },
    Section {
        title: "Kubernetes",
        flags: &[
            switch(
                "kube-subnet-mgr",
                |s| &mut s.kube_subnet_mgr,
                "keep leases in Kubernetes and not in etcd; not supported yet, and refused",
            ),
            text(
                "kube-api-url",
                |s| &mut s.kube_api_url,
                "server of Kubernetes, as a URL (only with -kube-subnet-mgr)",
            ),
            text(
                "kubeconfig-file",
                |s| &mut s.kubeconfig_file,
                "file that says how to reach it (only with -kube-subnet-mgr)",
            ),
            text(
                "kube-annotation-prefix",
                |s| &mut s.kube_annotation_prefix,
                "what the names of annotations begin with (only with -kube-subnet-mgr)",
            ),
            text(
                "net-config-path",
                |s| &mut s.net_config_path,
                "file with the configuration of the network (only with -kube-subnet-mgr)",
            ),
            switch(
                "set-node-network-unavailable",
                |s| &mut s.set_node_network_unavailable,
                "tell Kubernetes when the network of this node is up (only with -kube-subnet-mgr)",
            ),
        ],
    },
    Section {
        title: "Log and version",
        flags: &[
            int(
                "v",
                |s| &mut s.verbosity,
                "how much to log: 0 is changes of state, 1 to 3 also each decision, 4 and above everything",
            ),
            text(
                "vmodule",
                |s| &mut s.vmodule,
                "files of the program that log more than -v says, as a list such as iface=1,n*=4",
            ),
            text(
                "log_backtrace_at",
                |s| &mut s.log_backtrace_at,
                "line of the program, such as iface.rs:12, that logs how the program came there",
            ),
            text(
                "log-format",
                |s| &mut s.log_format,
                "text, as glog writes it, or json, an object for each event",
            ),
            switch("version", |s| &mut s.version, "print the version and exit"),
        ],
    },
];

/// All flags.
pub(crate) fn flags() -> Vec<Flag<Settings>> {
    SECTIONS.iter().flat_map(|section| section.flags).copied().collect()
}

/// The flags of a command that looks at what the daemon would do: those of the daemon, and [`JSON`].
pub(super) fn flags_to_look_by() -> Vec<Flag<Settings>> {
    let mut flags = flags();
    flags.retain(|flag| flag.name != "version");
    flags.push(JSON);
    flags
}

/// Of commands that show something.
pub(super) const JSON: Flag<Settings> =
    switch("json", |s| &mut s.json, "write JSON, whose members keep their names and meaning");

/// Of commands that show something.
pub(super) const COLOR: Flag<Settings> = text(
    "color",
    |s| &mut s.color,
    "auto colours what goes to a terminal unless NO_COLOR is set; always; never",
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
