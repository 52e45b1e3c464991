//! Network managers that look after the tunnel's device.

use std::path::Path;

use flannel_testing::{Process, eventually};

use crate::cluster::PATIENCE;
use crate::site::Site;

const NETWORKD: &str = "/usr/lib/systemd/systemd-networkd";

/// A file for everything, as some distributions bring it, and a place for networkd to write.
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
fn systemd_networkd_is_told_to_leave_the_device_alone() {
    let mut site = Site::running(1);
    site.make_room();
    site.shell(FILES);
    let before = site.ids();
    let mut running = networkd(&site);
    let finding = site.finds("networkd-manages-device");
    site.apply(&finding);
    // Without a message bus it is reloaded by a start.
    assert!(site.asked().contains("networkctl reload"));
    running.kill().unwrap();
    running = networkd(&site);
    site.is_as(&before, "networkd-manages-device");
    drop(running);
}

/// NetworkManager needs a message bus to be run; what it writes down of a device is written by hand.
#[test]
fn network_manager_is_told_to_leave_the_device_alone() {
    let mut site = Site::running(1);
    site.make_room();
    site.shell("mkdir -p /run/NetworkManager /etc/NetworkManager && mount -t tmpfs none /run/NetworkManager");
    site.shell("mount -t tmpfs none /etc/NetworkManager && mkdir /run/NetworkManager/devices");
    // What is mounted at /sys shows the links of the machine.
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
    eventually(PATIENCE, || site.asked().contains("nmcli general reload")).unwrap();
}
