//! The contract suite of backends, run on the UDP backend.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod common;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Mutex;
use std::time::Instant;

use common::{DEADLINE, ip, lab};
use flannel_backend_udp::{OpenUdp, UdpCounters};
use flannel_backend_vxlan::external_interface;
use flannel_core::{
    BackendAttrs, BackendType, ExternalInterface, LeaseAttrs, NetworkConfig, OpenBackend, SubnetKey,
};
use flannel_netlink::Namespace;
use flannel_testing::Lab;
use flannel_testing::contract::backend::{BackendSubject, kernel_objects};

/// A lab host, and a second host that has the addresses of all peers.
struct Host {
    lab: Lab,
    /// The sockets of the peers.
    peers: Vec<(Ipv4Addr, UdpSocket)>,
    /// The counters of the last opened backend.
    counters: Mutex<UdpCounters>,
}

/// The tunnel port.
const PORT: u16 = 8285;
const OTHER_PORT: u16 = 8286;

impl Host {
    fn new() -> Self {
        let lab = lab(2);
        let far = &lab.hosts[1].namespace;
        let mut peers = Vec::new();
        for n in 2..=5 {
            for last in [n, n + 100] {
                let address = Ipv4Addr::new(192, 168, 64, last);
                if last != 2 {
                    ip(far, &format!("address add {address}/24 dev eth0"));
                }
                for port in [PORT, OTHER_PORT] {
                    let socket = far.run(|| UdpSocket::bind((address, port))).unwrap().unwrap();
                    socket.set_nonblocking(true).unwrap();
                    peers.push((address, socket));
                }
            }
        }
        Self { lab, peers, counters: Mutex::default() }
    }

    fn namespace(&self) -> &Namespace {
        &self.lab.hosts[0].namespace
    }

    /// Sends a packet to a subnet and returns the peer that receives it.
    fn destination(&self, subnet: SubnetKey) -> IpAddr {
        let inside = Ipv4Addr::from(u32::from(subnet.v4().unwrap().addr()) + 7);
        let sender = self.namespace().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        let deadline = Instant::now() + DEADLINE;
        let mut packet = [0; 2048];
        loop {
            // Packets sent before the peers listen are lost.
            let _ = sender.send_to(b"whose", (inside, 9));
            std::thread::sleep(std::time::Duration::from_millis(2));
            for (address, socket) in &self.peers {
                match socket.recv(&mut packet) {
                    // The destination is the last word of an IPv4 header without options (RFC 791, section 3.1).
                    Ok(20..) if packet[16..20] == inside.octets() => return (*address).into(),
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            assert!(Instant::now() < deadline, "no peer receives packets to {subnet}");
        }
    }

    /// Discards the datagrams that peers received earlier.
    fn drain(&self) {
        let mut packet = [0; 2048];
        for (_, socket) in &self.peers {
            while socket.recv(&mut packet).is_ok() {}
        }
    }
}

impl BackendSubject for Host {
    fn opener(&self) -> Box<dyn OpenBackend> {
        let opener = OpenUdp::new(self.namespace().clone());
        *self.counters.lock().unwrap() = opener.counters();
        Box::new(opener)
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig::parse(common::IPV4).unwrap()
    }

    fn external(&self) -> ExternalInterface {
        external_interface(self.namespace(), "eth0").unwrap()
    }

    fn peer(&self, _: u8, public: Ipv4Addr) -> LeaseAttrs {
        LeaseAttrs::new(public.into())
    }

    fn unreachable_peer(&self, public: Ipv4Addr) -> Option<LeaseAttrs> {
        Some(BackendAttrs::new(BackendType::VXLAN).at(public.into()))
    }

    /// The kernel holds no peer state for this backend, so real packets show the destinations.
    fn peer_destinations(&self) -> BTreeMap<SubnetKey, IpAddr> {
        let has_device = self.objects().iter().any(|object| object.starts_with("link flannel0 "));
        let counts = self.counters.lock().unwrap().read();
        let peers = counts.peers.into_keys().filter(|_| has_device);
        peers
            .map(|peer| {
                self.drain();
                (peer, self.destination(peer))
            })
            .collect()
    }

    fn objects(&self) -> Vec<String> {
        kernel_objects(self.namespace()).unwrap()
    }

    fn add_foreign_objects(&self) {
        let host = self.namespace();
        ip(host, "route add 10.5.99.0/24 via 192.168.64.254 dev eth0");
        ip(host, "route add 10.77.0.0/24 via 192.168.64.254 dev eth0");
        ip(host, "tuntap add dev flannel7 mode tun");
        ip(host, "address add 10.7.0.0/32 dev flannel7");
    }

    fn invalid_options(&self) -> Vec<(&'static str, &'static str)> {
        vec![(r#"{"Type":"udp","Port":65536}"#, "Port"), (r#"{"Type":"udp","Port":"1"}"#, "Port")]
    }

    fn other_options(&self) -> Vec<&'static str> {
        vec![r#"{"Type":"udp","Port":8286}"#]
    }

    /// The device disappears with the backend.
    fn adopts(&self) -> bool {
        false
    }
}

flannel_testing::backend_contract!(Host::new(), skip: {
    adopts = "the TUN device ends with the process that holds it",
    block = "a peer is an entry in memory, which cannot fail to be written",
    plan = "a start and a sync write nothing that a plan could list",
    undo = "a peer is an entry in memory, which no other program can remove",
});
