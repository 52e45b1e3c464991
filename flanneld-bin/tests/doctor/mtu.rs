//! Findings about MTUs.

use crate::cluster::PATIENCE;
use crate::site::{Site, commands};

#[test]
fn device_and_bridge_get_the_mtu_that_the_underlay_allows() {
    let mut site = Site::running(1);
    let _pod = site.cluster.add_pod(0);
    let finding = site.cycle("bridge-mtu", || {
        drop(site.shell("ip link set pod1 mtu 1500; ip link set cni0 mtu 1500"));
    });
    assert_eq!(commands(&finding).len(), 2, "{finding:#}");
    // A running daemon would correct it.
    site.cluster.daemon(0).terminate(PATIENCE).unwrap();
    let finding = site.cycle("device-mtu", || drop(site.shell("ip link set flannel.1 mtu 1400")));
    assert_eq!(commands(&finding), ["ip link set flannel.1 mtu 1450"]);
}

#[test]
fn a_missing_or_changed_subnet_file_is_rewritten() {
    let site = Site::running(1);
    let file = site.cluster.subnet_file(0);
    let right = std::fs::read_to_string(&file).unwrap();
    site.cycle("subnet-file", || std::fs::write(&file, right.replace("1450", "1500")).unwrap());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), right);
    site.cycle("subnet-file", || std::fs::remove_file(&file).unwrap());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), right);
}
