//! Requirements on the host: capabilities, kernel features, programs, a free port.

use flannel_core::KernelFeature;
use flannel_netlink::Link;

use crate::doctor::facts::{Facts, Socket};
use crate::doctor::finding::{Cure, Fault, Finding, quoted};

pub(super) const CAPABILITIES: Fault = Fault::error(
    "capabilities",
    "without CAP_NET_ADMIN the daemon cannot create devices, routes or rules, and doctor finds only some of \
     the faults",
);

pub(in crate::doctor) fn capabilities(facts: &Facts) -> Vec<Finding> {
    if facts.may_change_network != Some(false) {
        return Vec::new();
    }
    let who = match &facts.own_daemon {
        Some(daemon) => format!("flanneld (process {})", daemon.pid),
        None => "this process, and so flanneld run like it,".to_owned(),
    };
    let program = quoted(&facts.program.to_string_lossy());
    let cure = Cure::run([format!("setcap cap_net_admin,cap_net_raw+ep {program}")]).lasting([
        "mkdir -p /etc/systemd/system/flanneld.service.d && printf '[Service]\\nAmbientCapabilities=CAP_NET_ADMIN \
         CAP_NET_RAW\\n' > /etc/systemd/system/flanneld.service.d/capabilities.conf && systemctl daemon-reload",
    ]);
    vec![CAPABILITIES.found(format!("{who} lacks CAP_NET_ADMIN"), cure)]
}

pub(super) const NOT_ROOT: Fault = Fault::warning(
    "doctor-not-root",
    "packet filters and processes of other users are hidden: there may be more faults",
);

pub(in crate::doctor) fn not_root(facts: &Facts) -> Vec<Finding> {
    // The finding about the agent includes this one.
    if facts.may_look || facts.may_change_network == Some(false) {
        return Vec::new();
    }
    let program = quoted(&facts.program.to_string_lossy());
    let what = "doctor runs without CAP_NET_ADMIN and cannot see everything";
    vec![NOT_ROOT.found(what, Cure::run([format!("sudo {program} doctor")]))]
}

pub(super) const KERNEL_VXLAN: Fault =
    Fault::error("kernel-vxlan", "the backend cannot create its VXLAN device");
pub(super) const TUN_DEVICE: Fault = Fault::error("tun-device", "the backend cannot create its TUN device");
pub(super) const KERNEL_NFTABLES: Fault = Fault::error(
    "kernel-nftables",
    "the network config has EnableNFTables, and the rules cannot be written: packets of pods may be dropped, \
     and nothing is masqueraded",
);

pub(in crate::doctor) fn kernel(facts: &Facts) -> Vec<Finding> {
    let Some(network) = &facts.network else { return Vec::new() };
    let (kernel, release) = (&facts.kernel, &facts.kernel.release);
    let backend = facts.backends.find(&network.config.backend.name);
    let needs = |feature| backend.is_some_and(|backend| backend.kernel_features().contains(&feature));
    let module = |name: &str| {
        Cure::run([format!("modprobe {name}")])
            .lasting([format!("echo {name} >> /etc/modules-load.d/flannel.conf")])
    };
    let mut found = Vec::new();
    if needs(KernelFeature::Vxlan) && kernel.has_vxlan == Some(false) {
        found.push(
            KERNEL_VXLAN.found(format!("kernel {release} cannot create VXLAN devices"), module("vxlan")),
        );
    }
    if let Some(why) = kernel.no_tun.as_ref().filter(|_| needs(KernelFeature::Tun)) {
        let make =
            "modprobe tun; [ -c /dev/net/tun ] || { mkdir -p /dev/net && mknod /dev/net/tun c 10 200; }";
        found.push(TUN_DEVICE.found(why.clone(), Cure { commands: vec![make.to_owned()], ..module("tun") }));
    }
    // Without the capability the kernel refuses the request.
    if network.config.enable_nftables && !kernel.has_nftables && facts.may_look {
        let what = format!("kernel {release} does not support nftables");
        found.push(KERNEL_NFTABLES.found(what, module("nf_tables")));
    }
    found
}

pub(super) const FIREWALL_PROGRAM: Fault = Fault::error(
    "firewall-program",
    "the rules cannot be written: on a host that drops forwarded packets no pod is reachable, and nothing is \
     masqueraded",
);

pub(in crate::doctor) fn firewall_program(facts: &Facts) -> Vec<Finding> {
    let lacks = facts.firewall.lacks.iter();
    let found = |package: &String| {
        let cure = Cure::run([format!("apt-get install -y {package} || dnf install -y {package}")]);
        FIREWALL_PROGRAM.found(format!("the programs of {package} are not installed"), cure)
    };
    lacks.map(found).collect()
}

pub(super) const CHECKSUM_OFFLOAD: Fault = Fault::error(
    "checksum-offload",
    "kernels before 5.7 send wrong checksums when a packet of the tunnel is masqueraded: connections to other \
     hosts stall for seconds",
);

pub(in crate::doctor) fn checksum_offload(facts: &Facts) -> Vec<Finding> {
    let release = &facts.kernel.release;
    let found = |device: &String| {
        let what = format!("kernel {release} leaves the checksums of {device} to the interface below");
        CHECKSUM_OFFLOAD.found(what, Cure::run([format!("ethtool -K {} tx off", quoted(device))]))
    };
    facts.kernel.wrong_checksums.iter().map(found).collect()
}

pub(super) const PORT_TAKEN: Fault =
    Fault::error("port-taken", "the tunnel cannot receive packets on a port that another program uses");

pub(in crate::doctor) fn port_taken(facts: &Facts) -> Vec<Finding> {
    let is_ours = |pid: u32| facts.own_daemon.as_ref().is_some_and(|daemon| daemon.pid == pid);
    let is_in_order = |socket: &&Socket| match &socket.owner {
        Some((pid, _)) => is_ours(*pid),
        // The socket of a VXLAN device has no owner; a conflicting device is another finding.
        None => facts.links.iter().filter_map(Link::vxlan).any(|vxlan| vxlan.port == socket.port),
    };
    let found = |socket: &Socket| {
        let (address, port) = (socket.address, socket.port);
        let (who, cure) = match &socket.owner {
            Some((pid, name)) => (format!("{name} (process {pid})"), Cure::run([format!("kill {pid}")])),
            None => ("another program".to_owned(), Cure::run([format!("ss -lunp sport = :{port}")])),
        };
        PORT_TAKEN.found(format!("{who} has UDP port {port} on {address}"), cure)
    };
    // A program may have a socket per address family.
    let mut taken: Vec<&Socket> = facts.sockets.iter().filter(|socket| !is_in_order(socket)).collect();
    taken.dedup_by_key(|socket| &socket.owner);
    taken.into_iter().map(found).collect()
}

pub(super) const TUNNEL_TAKEN: Fault = Fault::error(
    "tunnel-taken",
    "the kernel allows each VXLAN number once per port, so the device of the network cannot be created",
);

pub(in crate::doctor) fn tunnel_taken(facts: &Facts) -> Vec<Finding> {
    let wanted = facts.network.iter().flat_map(|network| &network.devices);
    let mut found = Vec::new();
    for device in wanted {
        let is_same = |link: &&Link| {
            link.name != device.name
                && link.vxlan().is_some_and(|vxlan| {
                    let is_v4 = vxlan.local.or(vxlan.group).is_none_or(|address| address.is_ipv4());
                    (Some(vxlan.vni), Some(vxlan.port)) == (device.vni, device.port)
                        && is_v4 == device.families.v4
                })
        };
        if let Some(other) = facts.links.iter().find(is_same) {
            let (vni, port) = (device.vni.unwrap_or_default(), device.port.unwrap_or_default());
            let what = format!("the device {} has VNI {vni} on port {port}", other.name);
            found.push(
                TUNNEL_TAKEN.found(what, Cure::run([format!("ip link delete {}", quoted(&other.name))])),
            );
        }
    }
    found
}
