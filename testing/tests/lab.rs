//! Hosts and pods as namespaces on the real kernel.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation is how a test fails")]

use flannel_netlink::{LinkChange, Namespace, Netlink};
use flannel_testing::{
    Host, Lab, LabError, LabOptions, PingError, PingOptions, eventually, output_in, ping, remove_name,
};
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn every_host_reaches_every_other_host() {
    let lab = Lab::new(&LabOptions { hosts: 3, ..LabOptions::default() }).unwrap();
    for from in &lab.hosts {
        for to in &lab.hosts {
            for address in &to.addresses {
                ping(&from.namespace, address.addr(), &PingOptions::default()).unwrap();
            }
        }
    }
    let addresses: Vec<_> = lab.hosts.iter().map(|host| host.ipv4().unwrap().to_string()).collect();
    assert_eq!(addresses, ["192.168.64.1", "192.168.64.2", "192.168.64.3"]);
    assert_eq!(lab.hosts[2].ipv6().unwrap().to_string(), "fd00:64::3");
}

#[test]
fn hosts_on_two_segments_reach_each_other_through_the_gateway() {
    let lab = Lab::new(&LabOptions { hosts: 3, segments: 2, ..LabOptions::default() }).unwrap();
    let [one, two, three] = &lab.hosts[..] else { panic!("the lab must have three hosts") };
    let gateway = |to: &Host, which: usize| {
        let mut netlink = Netlink::open_in(&one.namespace).unwrap();
        netlink.route_to(to.addresses[which].addr()).unwrap().gateway
    };
    assert_eq!(gateway(three, 0), None);
    assert_eq!(gateway(two, 0), Some(IpAddr::from([192, 168, 64, 254])));
    assert_eq!(gateway(two, 1), Some("fd00:64::fe".parse().unwrap()));
    for address in &two.addresses {
        ping(&one.namespace, address.addr(), &PingOptions::default()).unwrap();
    }
}

#[test]
fn a_host_without_a_default_route_reaches_its_segment_only() {
    let lab = Lab::new(&LabOptions::default()).unwrap();
    let outside = ping(&lab.hosts[0].namespace, [10, 0, 0, 1].into(), &PingOptions::default());
    assert!(matches!(outside, Err(PingError::Unreachable { .. })), "{outside:?}");
}

#[test]
fn pods_of_one_host_reach_each_other_and_their_host() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let subnets = [net("10.5.3.0/24"), net("fd00:5:3::/64")];
    let one = lab.hosts[0].add_pod(&subnets, 1450).unwrap();
    let two = lab.hosts[0].add_pod(&subnets, 1450).unwrap();
    assert_eq!(one.addresses, [addr("10.5.3.2"), addr("fd00:5:3::2")]);
    assert_eq!(
        (two.ipv4().unwrap().to_string(), two.ipv6().unwrap().to_string()),
        ("10.5.3.3".into(), "fd00:5:3::3".into())
    );
    for to in two.addresses.iter().copied().chain([addr("10.5.3.1"), addr("fd00:5:3::1")]) {
        ping(&one.namespace, to, &PingOptions::default()).unwrap();
    }
    // The underlay is behind the host, so the pod's default route leads there.
    ping(&one.namespace, lab.hosts[0].addresses[0].addr(), &PingOptions::default()).unwrap();
}

#[test]
fn a_packet_larger_than_the_pods_mtu_is_fragmented() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let pod = lab.hosts[0].add_pod(&[net("10.5.3.0/24"), net("fd00:5:3::/64")], 1450).unwrap();
    for (gateway, headers) in [("10.5.3.1", 28), ("fd00:5:3::1", 48)] {
        let options = PingOptions { payload: 1450 - headers, dont_fragment: true, ..PingOptions::default() };
        ping(&pod.namespace, addr(gateway), &options).unwrap();
        let options = PingOptions { payload: 1451 - headers, ..options };
        let refused = ping(&pod.namespace, addr(gateway), &options);
        assert!(matches!(refused, Err(PingError::TooLarge { .. })), "{refused:?}");
        ping(&pod.namespace, addr(gateway), &PingOptions { dont_fragment: false, ..options }).unwrap();
    }
}

#[test]
fn a_full_subnet_is_reported() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let subnet = net("10.5.3.0/30");
    lab.hosts[0].add_pod(&[subnet], 1450).unwrap();
    let full = lab.hosts[0].add_pod(&[subnet], 1450);
    assert!(matches!(full, Err(LabError::SubnetFull(found)) if found == subnet));
}

#[test]
fn labs_with_the_same_addresses_are_isolated() {
    let (one, two) = std::thread::scope(|scope| {
        let start = || Lab::new(&LabOptions::default()).unwrap();
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().unwrap(), two.join().unwrap())
    });
    one.hosts[1].unplug().unwrap();
    let to = one.hosts[1].addresses[0].addr();
    let options = PingOptions { timeout: Duration::from_millis(100), ..PingOptions::default() };
    assert!(ping(&one.hosts[0].namespace, to, &options).is_err());
    ping(&two.hosts[0].namespace, to, &PingOptions::default()).unwrap();
    one.hosts[1].plug().unwrap();
    eventually(LIMIT, || ping(&one.hosts[0].namespace, to, &options)).unwrap();
}

#[test]
fn dropping_a_host_removes_its_links() {
    let mut lab = Lab::new(&LabOptions::default()).unwrap();
    let ports = |switch: &Namespace| {
        let links = Netlink::open_in(switch).unwrap().links().unwrap();
        links.into_iter().map(|link| link.name).filter(|name| name.starts_with("port")).collect::<Vec<_>>()
    };
    assert_eq!(ports(lab.switch()), ["port1", "port2"]);
    drop(lab.hosts.remove(0));
    let gone = || {
        if ports(lab.switch()) == ["port2"] { Ok(()) } else { Err(format!("{:?}", ports(lab.switch()))) }
    };
    eventually(LIMIT, gone).unwrap();
}

#[test]
fn a_named_namespace_is_found_by_name_until_its_handle_is_dropped() {
    let lab = Lab::new(&LabOptions { hosts: 1, named: true, ..LabOptions::default() }).unwrap();
    let pod = lab.hosts[0].add_pod(&[net("10.5.3.0/24")], 1450).unwrap();
    let prefix = lab.prefix().unwrap().to_owned();
    let path = |name: &str| format!("/run/netns/{prefix}-{name}");
    for (name, namespace) in
        [("switch", lab.switch()), ("host-1", &lab.hosts[0].namespace), ("host-1-pod-1", &pod.namespace)]
    {
        assert_eq!(Namespace::open(path(name)).unwrap().inode(), namespace.inode(), "{name}");
    }
    drop(pod);
    assert!(!Path::new(&path("host-1-pod-1")).exists());
    assert!(Path::new(&path("host-1")).exists());
    drop(lab);
    assert!(!Path::new(&path("host-1")).exists());
    assert!(!Path::new(&path("switch")).exists());
}

#[test]
fn a_kept_lab_outlives_its_handles_until_its_names_are_removed() {
    let lab = Lab::new(&LabOptions { hosts: 2, named: true, ..LabOptions::default() }).unwrap();
    let prefix = lab.prefix().unwrap().to_owned();
    lab.keep();
    let to = lab.hosts[1].addresses[0].addr();
    drop(lab);
    let host = Namespace::open(format!("/run/netns/{prefix}-host-1")).unwrap();
    let answered = ping(&host, to, &PingOptions::default());
    for name in ["switch", "host-1", "host-2"] {
        remove_name(&format!("{prefix}-{name}")).unwrap();
    }
    answered.unwrap();
    assert!(remove_name(&format!("{prefix}-switch")).is_err());
    assert!(remove_name("../../etc/passwd").is_err());
}

#[test]
fn a_lab_with_too_many_hosts_is_rejected() {
    let refused = Lab::new(&LabOptions { hosts: 254, ..LabOptions::default() });
    assert!(matches!(refused, Err(LabError::TooLarge { .. })));
    assert!(Lab::new(&LabOptions { segments: 0, ..LabOptions::default() }).is_err());
}

#[test]
fn the_machines_settings_do_not_affect_a_lab() {
    let lab = Lab::new(&LabOptions { hosts: 1, ..LabOptions::default() }).unwrap();
    let host = &lab.hosts[0].namespace;
    assert_eq!(host.read_sysctl("net/ipv4/conf/eth0/rp_filter").unwrap(), "0");
    assert_eq!(host.read_sysctl("net/ipv4/ip_forward").unwrap(), "1");
    let pod = lab.hosts[0].add_pod(&[net("10.5.3.0/24")], 1450).unwrap();
    assert_eq!(pod.namespace.read_sysctl("net/ipv4/ip_forward").unwrap(), "0");
    let mut netlink = Netlink::open_in(&pod.namespace).unwrap();
    let link = netlink.link("eth0").unwrap().unwrap();
    assert_eq!(link.mtu, 1450);
    netlink.change_link(link.index, &LinkChange { up: Some(false), ..LinkChange::default() }).unwrap();
}

#[test]
fn a_program_without_capabilities_gets_a_list_of_all_that_are_missing() {
    // Runs this test program again without any capability.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "prints_missing_requirements", "--nocapture"]);
    let output = output_in(&Namespace::current().unwrap(), command).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for capability in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"] {
        assert!(text.contains(capability), "{text}");
    }
}

#[test]
fn prints_missing_requirements() {
    match flannel_testing::check_requirements() {
        Ok(()) => println!("nothing is missing"),
        Err(missing) => missing.lines().for_each(|line| println!("{line}")),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}
