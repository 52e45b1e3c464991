//! Findings about network managers that manage the tunnel device.

use std::path::Path;

use flannel_testing::{Process, eventually};

use crate::cluster::PATIENCE;
use crate::site::Site;

const NETWORKD: &str = "/usr/lib/systemd/systemd-networkd";

/// A networkd file that matches every link, as in some distributions, and networkd's directories.
const FILES: &str = "mount -t sysfs -o ro none /sys
    mount -t tmpfs none /run/systemd
    mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp /etc/systemd/network
    chown -R systemd-network /run/systemd/netif
    mount -t tmpfs none /etc/systemd/network
    printf '[Match]\\nName=*\\n[Network]\\nDHCP=no\\nLinkLocalAddressing=no\\nKeepConfiguration=yes\\n' > \
    /etc/systemd/network/99-all.network";

fn networkd(site: &Site) -> Process {
    assert!(Path::new(NETWORKD).exists(), "run: apt-get install systemd");
    let command = site.command(Path::new(NETWORKD));
    Process::spawn_in(&site.cluster.lab.hosts[0].namespace, command).unwrap()
}

#[test]
fn the_device_becomes_unmanaged_by_networkd() {
    let mut site = Site::running(1);
    site.unshare_mounts();
    site.shell(FILES);
    let before = site.ids();
    let mut running = networkd(&site);
    let finding = site.wait_for_finding("networkd-manages-device");
    site.apply(&finding);
    // Without a message bus, a restart reloads it.
    assert!(site.calls().contains("networkctl reload"));
    running.kill().unwrap();
    running = networkd(&site);
    site.wait_until_cured(&before, "networkd-manages-device");
    drop(running);
}

/// NetworkManager needs a message bus, so the test writes its state files.
#[test]
fn the_device_becomes_unmanaged_by_network_manager() {
    let mut site = Site::running(1);
    site.unshare_mounts();
    site.shell("mkdir -p /run/NetworkManager /etc/NetworkManager && mount -t tmpfs none /run/NetworkManager");
    site.shell("mount -t tmpfs none /etc/NetworkManager && mkdir /run/NetworkManager/devices");
    // /sys shows the links of the machine.
    let index = site.shell("ip -o link show flannel.1 | cut -d: -f1");
    let file = format!("/run/NetworkManager/devices/{}", index.trim());
    let reload = format!(
        "grep -q 'interface-name:flannel\\*' /etc/NetworkManager/conf.d/10-flannel.conf
         printf '[device]\\nmanaged=false\\n' > {file}"
    );
    site.stand_in("nmcli", &reload);
    site.cycle("network-manager-manages-device", || {
        drop(site.shell(&format!("printf '[device]\\nmanaged=true\\n' > {file}")));
    });
    eventually(PATIENCE, || site.calls().contains("nmcli general reload")).unwrap();
}
