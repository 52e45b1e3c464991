//! IP forwarding and the reverse path filter.

use std::net::IpAddr;

use flannel_core::TunnelDevice;
use flannel_netlink::IpFamily;

use crate::doctor::facts::Facts;
use crate::doctor::finding::{Cure, Fault, Finding};

pub(super) const OFF: Fault =
    Fault::error("ip-forward", "the kernel forwards no packet from other hosts to pods of this host");
pub(super) const OFF_ON_DEVICE: Fault =
    Fault::error("ip-forward-device", "the kernel forwards no packet from the tunnel to a pod");

fn setting(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "net/ipv4/ip_forward",
        IpFamily::V6 => "net/ipv6/conf/all/forwarding",
    }
}

pub(in crate::doctor) fn off(facts: &Facts) -> Vec<Finding> {
    let Some(network) = &facts.network else { return Vec::new() };
    let mut found = Vec::new();
    for pool in network.config.pools() {
        let family = IpFamily::of(pool.network().addr());
        let all = setting(family);
        if facts.sysctl(all) == Some("0") {
            found.push(OFF.found(format!("{} is 0", all.replace('/', ".")), Cure::sysctl(all, 1)));
            continue;
        }
        let of_family = |device: &&TunnelDevice| match family {
            IpFamily::V4 => device.families.v4,
            IpFamily::V6 => device.families.v6,
        };
        for device in network.devices.iter().filter(of_family) {
            let path = match family {
                IpFamily::V4 => format!("net/ipv4/conf/{}/forwarding", device.name),
                IpFamily::V6 => format!("net/ipv6/conf/{}/forwarding", device.name),
            };
            if facts.sysctl(&path) == Some("0") {
                let what = format!("forwarding of {family} is off on {}", device.name);
                found.push(OFF_ON_DEVICE.found(what, Cure::sysctl(&path, 1)));
            }
        }
    }
    found
}

pub(super) const STRICT: Fault = Fault::warning(
    "rp-filter",
    "packets that enter the network at another host, such as those to a NodePort, are dropped, because replies \
     to their source would leave by another link",
);
pub(super) const STRICT_BELOW: Fault = Fault::error(
    "rp-filter-underlay",
    "packets of the tunnel from that host are dropped, because replies to it leave by another link",
);

/// The larger of the two `rp_filter` values applies (`Documentation/networking/ip-sysctl.rst`); 1 is strict.
fn is_strict(facts: &Facts, link: &str) -> bool {
    let read = |path: String| facts.sysctl(&path).and_then(|value| value.parse::<u8>().ok()).unwrap_or(0);
    let all = read("net/ipv4/conf/all/rp_filter".to_owned());
    all.max(read(format!("net/ipv4/conf/{link}/rp_filter"))) == 1
}

pub(in crate::doctor) fn reverse_path(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let loosen = |link: &str| Cure::sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), 2);
    // Masqueraded packets have a source inside of the network.
    if !facts.options.rules.masquerade {
        for device in facts.devices().filter(|device| is_strict(facts, &device.name)) {
            let what = format!("the reverse path filter is strict on {}", device.name);
            found.push(STRICT.found(what, loosen(&device.name)));
        }
    }
    let Ok(external) = &facts.external else { return found };
    if is_strict(facts, &external.name) {
        let elsewhere = facts.peers.iter().find_map(|peer| {
            let public = peer.lease.attrs.public.addresses().find(IpAddr::is_ipv4)?;
            let link = peer.leaves_by.filter(|index| *index != external.index)?;
            Some((public, facts.link_name(link)))
        });
        if let Some((public, link)) = elsewhere {
            let name = &external.name;
            let what = format!(
                "the reverse path filter is strict on {name}, and packets to {public} leave by {link}"
            );
            found.push(STRICT_BELOW.found(what, loosen(name)));
        }
    }
    found
}

pub(super) const BRIDGE: Fault = Fault::warning(
    "bridge-netfilter",
    "kube-proxy's rules do not apply to packets between pods of this host, so a pod cannot reach a service \
     whose endpoint is on the same host",
);

/// Only kube-proxy needs it.
pub(in crate::doctor) fn bridge(facts: &Facts) -> Vec<Finding> {
    const SETTING: &str = "net/bridge/bridge-nf-call-iptables";
    let Some(bridge) = facts.pod_bridges().next().filter(|_| facts.firewall.has_kube_proxy) else {
        return Vec::new();
    };
    let cure = Cure::sysctl(SETTING, 1);
    match facts.sysctl(SETTING) {
        Some("1") => Vec::new(),
        Some(_) => {
            let what = format!(
                "net.bridge.bridge-nf-call-iptables is 0, and pods are on the bridge {}",
                bridge.name
            );
            vec![BRIDGE.found(what, cure)]
        }
        None => {
            let what =
                format!("the module br_netfilter is not loaded, and pods are on the bridge {}", bridge.name);
            let mut cure = cure;
            cure.commands.insert(0, "modprobe br_netfilter".to_owned());
            cure.lasting.insert(0, "echo br_netfilter >> /etc/modules-load.d/flannel.conf".to_owned());
            vec![BRIDGE.found(what, cure)]
        }
    }
}
