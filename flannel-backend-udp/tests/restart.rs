//! Restoring device and sockets from a store, and stored descriptors that no longer fit.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step of a test is a failed test")]

mod common;

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{BOTH, DEADLINE, Setup, TestHost, add_pods, introduce, ip, lab};
use flannel_backend_udp::{DescriptorStore, Offloads, OpenUdp};
use flannel_netlink::{Namespace, Netlink, Tun, TunOptions};
use flannel_testing::{Lab, PingOptions, Pod, eventually, ping, transfer};

/// A descriptor store in this process.
#[derive(Debug, Default)]
struct TestStore(Mutex<Vec<(String, OwnedFd)>>);

impl TestStore {
    fn put(&self, name: &str, descriptor: impl Into<OwnedFd>) {
        self.0.lock().unwrap().push((name.to_owned(), descriptor.into()));
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.lock().unwrap().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }
}

impl DescriptorStore for TestStore {
    fn kept(&self, name: &str) -> Vec<OwnedFd> {
        let kept = self.0.lock().unwrap();
        let same = kept.iter().filter(|(other, _)| other == name);
        same.map(|(_, descriptor)| descriptor.try_clone().unwrap()).collect()
    }

    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.remove(name)?;
        self.put(name, descriptor.try_clone_to_owned()?);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().retain(|(other, _)| other != name);
        Ok(())
    }
}

/// Two peers; the first one stores its descriptors.
struct Site {
    shelf: Arc<TestStore>,
    setup: Setup,
    stations: Vec<TestHost>,
    pods: Vec<Pod>,
    lab: Lab,
}

impl Site {
    fn new(setup: Setup) -> Self {
        let lab = lab(2);
        let other = TestHost::start(&lab.hosts[1].namespace, 2, setup);
        let mut site = Self { shelf: Arc::default(), setup, stations: vec![other], pods: Vec::new(), lab };
        site.start();
        introduce(&mut site.stations);
        site.pods = add_pods(&site.stations, &site.lab);
        site.check();
        site
    }

    fn host(&self) -> &Namespace {
        &self.lab.hosts[0].namespace
    }

    /// Starts the first host, which knows no peers yet.
    fn start(&mut self) {
        let opener = OpenUdp::new(self.host().clone()).with_store(self.shelf.clone());
        let station = TestHost::start_with(opener, self.host(), 1, self.setup);
        self.stations.insert(0, station);
    }

    fn stop(&mut self) {
        self.stations.remove(0);
    }

    fn restart(&mut self) {
        self.stop();
        self.start();
        introduce(&mut self.stations);
        self.check();
    }

    /// Checks that pods reach each other in each address family.
    fn check(&self) {
        for to in &self.pods[1].addresses {
            ping(&self.pods[0].namespace, *to, &PingOptions::default()).unwrap();
        }
        transfer(&self.pods[1].namespace, &self.pods[0].namespace, self.pods[0].addresses[0], 1 << 20)
            .unwrap();
    }

    fn index(&self) -> Option<u32> {
        Netlink::open_in(self.host()).unwrap().link("flannel0").unwrap().map(|link| link.index)
    }
}

const NAMES: [&str; 3] = ["flannel-tun", "flannel-udp-ipv4", "flannel-udp-ipv6"];

#[test]
fn device_and_sockets_are_restored() {
    let mut site = Site::new(Setup { config: BOTH, ..Setup::default() });
    assert_eq!(site.shelf.names(), NAMES);
    let (index, shown) = (site.index(), ip(site.host(), "-o address show dev flannel0"));
    site.restart();
    assert_eq!((site.index(), ip(site.host(), "-o address show dev flannel0")), (index, shown));
    assert_eq!(site.shelf.names(), NAMES);
    assert_eq!(site.stations[0].sync(), flannel_core::SyncReport::default());
    // The offloads may change.
    site.setup.offloads = Offloads::NONE;
    site.restart();
    site.setup.offloads = Offloads::default();
    site.restart();
    assert_eq!(site.index(), index);
}

#[test]
fn packets_of_both_directions_wait_until_the_peers_are_known() {
    let mut site = Site::new(Setup::default());
    let [near, far] =
        [0, 1].map(|pod: usize| (site.pods[pod].namespace.clone(), site.pods[pod].addresses[0]));
    let receiver = |(namespace, address): &(Namespace, IpAddr)| {
        let socket = namespace.run(|| UdpSocket::bind((*address, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    };
    let (here, there) = (receiver(&near), receiver(&far));
    site.stop();
    for n in 0..100 {
        here.send_to(&[n], there.local_addr().unwrap()).unwrap();
        there.send_to(&[n], here.local_addr().unwrap()).unwrap();
    }
    site.start();
    // No packet is rejected in the meantime.
    site.stations[0].sync();
    std::thread::sleep(Duration::from_millis(50));
    introduce(&mut site.stations);
    for socket in [&here, &there] {
        for n in 0..100 {
            let mut byte = [0];
            socket.recv(&mut byte).unwrap();
            assert_eq!(byte, [n]);
        }
    }
    assert_eq!(site.stations[0].counts().drops, [].into());
}

#[test]
fn unfit_descriptors_under_the_names_are_rejected() {
    let mut site = Site::new(Setup::default());
    let index = site.index();
    let elsewhere = site.lab.hosts[1].namespace.clone();
    let local = "192.168.64.1:8285";
    let plain =
        |namespace: &Namespace, name: &str| Tun::open_in(namespace, &TunOptions::new(name)).unwrap().fd;
    let with_header = |namespace: &Namespace| {
        let options = TunOptions { vnet_header: true, ..TunOptions::new("flannel%d") };
        Tun::open_in(namespace, &options).unwrap().fd
    };
    let bound = |address: &str| site.host().run(|| UdpSocket::bind(address)).unwrap().unwrap();
    let connected = bound("192.168.64.1:0");
    connected.connect("192.168.64.2:9").unwrap();
    let others: Vec<(&str, OwnedFd)> = vec![
        ("flannel-tun", File::open("/dev/null").unwrap().into()),
        ("flannel-tun", File::open("/dev/net/tun").unwrap().into()),
        ("flannel-tun", plain(site.host(), "flannel%d")),
        ("flannel-tun", with_header(&elsewhere)),
        ("flannel-udp-ipv4", File::open("/dev/null").unwrap().into()),
        ("flannel-udp-ipv4", bound("192.168.64.1:0").into()),
        ("flannel-udp-ipv4", bound("0.0.0.0:0").into()),
        ("flannel-udp-ipv4", connected.into()),
        ("flannel-udp-ipv4", site.host().run(|| TcpListener::bind(local)).unwrap().unwrap().into()),
        ("flannel-udp-ipv6", File::open("/dev/null").unwrap().into()),
    ];
    // Stored before the right ones, so that each is examined.
    for (name, descriptor) in others {
        site.shelf.0.lock().unwrap().insert(0, (name.to_owned(), descriptor));
    }
    site.restart();
    assert_eq!(site.index(), index, "the right descriptor was found");
    assert!(!site.shelf.names().contains(&"flannel-udp-ipv6".to_owned()), "{:?}", site.shelf);
    // Now without the right ones.
    site.stop();
    site.shelf.0.lock().unwrap().clear();
    eventually(DEADLINE, || site.index().is_none()).unwrap();
    site.shelf.put("flannel-tun", with_header(&elsewhere));
    site.shelf.put("flannel-udp-ipv4", UdpSocket::bind("127.0.0.1:0").unwrap());
    site.start();
    introduce(&mut site.stations);
    site.check();
    assert_eq!(site.shelf.names(), NAMES[..2]);
}

#[test]
fn a_socket_of_another_namespace_is_rejected() {
    let mut site = Site::new(Setup::default());
    let elsewhere = Namespace::create().unwrap();
    ip(&elsewhere, "link set lo up");
    ip(&elsewhere, "address add 192.168.64.1/32 dev lo");
    site.stop();
    site.shelf.remove("flannel-udp-ipv4").unwrap();
    let twin = elsewhere.run(|| UdpSocket::bind("192.168.64.1:8285")).unwrap().unwrap();
    site.shelf.put("flannel-udp-ipv4", twin);
    site.start();
    introduce(&mut site.stations);
    site.check();
}

#[test]
fn a_device_of_another_network_is_deleted_and_its_name_reused() {
    let mut site = Site::new(Setup::default());
    let index = site.index();
    site.stop();
    ip(site.host(), "address add 10.9.1.0/32 dev flannel0");
    site.start();
    introduce(&mut site.stations);
    assert!(site.index().is_some() && site.index() != index);
    site.check();
    let index = site.index();
    site.stop();
    ip(site.host(), "route add 10.9.0.0/16 dev flannel0");
    site.start();
    introduce(&mut site.stations);
    assert!(site.index().is_some() && site.index() != index);
    site.check();
    assert_eq!(ip(site.host(), "route show dev flannel0"), ["10.5.0.0/16"]);
}

#[test]
fn a_device_deleted_between_runs_is_created_again() {
    let mut site = Site::new(Setup::default());
    site.stop();
    ip(site.host(), "link del flannel0");
    site.start();
    introduce(&mut site.stations);
    site.check();
    assert_eq!(site.shelf.names(), NAMES[..2]);
    // A device deleted while the backend runs isn't restored later.
    ip(site.host(), "link del flannel0");
    assert_eq!(site.stations[0].heal().failed, []);
    let index = site.index();
    site.restart();
    assert_eq!(site.index(), index);
}

#[test]
fn removal_empties_the_store() {
    let mut site = Site::new(Setup::default());
    site.stations[0].backend.remove().unwrap();
    assert_eq!(site.shelf.names(), [""; 0]);
    assert_eq!(site.index(), None);
}

#[test]
fn a_socket_that_was_shut_down_is_opened_again() {
    let mut site = Site::new(Setup::default());
    let kept = site.shelf.kept("flannel-udp-ipv4").remove(0);
    // The standard library only shuts down streams; the kernel shuts down the socket and returns ENOTCONN.
    let socket = std::net::TcpStream::from(kept);
    socket.shutdown(std::net::Shutdown::Both).unwrap_err();
    drop(socket);
    let report = site.stations[0].heal();
    assert_eq!((report.failed, report.drifted), (vec![], 1));
    site.check();
    site.restart();
}
