//! The features and settings of the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;

use flannel_netlink::{Error, Namespace, Netlink, NewLink, NewLinkKind, NewVxlan, Nftables};

use crate::doctor::facts::{KernelFacts, NetworkFacts};

/// Tests the required features. Devices are created in a temporary namespace.
pub(super) fn features(network: Option<&NetworkFacts>) -> KernelFacts {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let devices = network.map_or(&[][..], |network| &network.devices);
    let wrong_checksums = if sends_wrong_checksums(&release) {
        let leaves =
            |name: &String| Netlink::open().is_ok_and(|it| it.tx_checksum_offload(name).unwrap_or(false));
        devices.iter().map(|device| device.name.clone()).filter(leaves).collect()
    } else {
        Vec::new()
    };
    KernelFacts {
        has_vxlan: has_vxlan(),
        has_nftables: Nftables::open().and_then(|mut kernel| kernel.generation()).is_ok(),
        no_tun: no_tun(),
        wrong_checksums,
        release,
    }
}

/// Returns whether a kernel of this release, as `uname -r` shows it, sends wrong checksums when a packet of a VXLAN tunnel
/// is masqueraded: those before 5.7 do.
fn sends_wrong_checksums(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (5, 7))
}

/// Creates a VXLAN device in a temporary namespace.
fn has_vxlan() -> Option<bool> {
    let scratch = Namespace::create().ok()?;
    let vxlan = NewVxlan { vni: 1, ..NewVxlan::default() };
    let made = Netlink::open_in(&scratch)
        .and_then(|mut netlink| netlink.create_link(&NewLink::new("flannel.1", NewLinkKind::Vxlan(vxlan))));
    match made {
        Ok(()) => Some(true),
        // `rtnl_newlink` in `net/core/rtnetlink.c` does not know the kind.
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Some(false),
        Err(_) => None,
    }
}

/// Opens `/dev/net/tun`, which creates no device.
fn no_tun() -> Option<String> {
    const PATH: &str = "/dev/net/tun";
    match fs::metadata(PATH) {
        Err(error) => Some(format!("{PATH}: {error}")),
        Ok(metadata) if !metadata.file_type().is_char_device() => Some(format!("{PATH} is no device")),
        Ok(_) => match fs::File::options().read(true).write(true).open(PATH) {
            Err(error) if error.raw_os_error() != Some(libc::EACCES) => Some(format!("{PATH}: {error}")),
            _ => None,
        },
    }
}

/// Reads the relevant settings, in general and for these links.
pub(super) fn sysctls(namespace: &Namespace, links: &[String]) -> BTreeMap<String, String> {
    let mut names: Vec<String> = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv4/conf/all/rp_filter",
        "net/bridge/bridge-nf-call-iptables",
    ]
    .map(str::to_owned)
    .into();
    for link in links {
        names.push(format!("net/ipv4/conf/{link}/rp_filter"));
        names.push(format!("net/ipv4/conf/{link}/forwarding"));
        names.push(format!("net/ipv6/conf/{link}/forwarding"));
    }
    let read = |name: String| {
        let value = namespace.read_sysctl(&name).ok()?;
        Some((name, value))
    };
    names.into_iter().filter_map(read).collect()
}
