//! Two hosts in a crate that only depends on `flannel-core` and `flannel-backend-vxlan`.
//!
//! This is not an example of the workspace: `tests/outside.rs` builds a separate crate from it.

use flannel_backend_vxlan::{Namespace, OpenVxlan, external_interface};
use flannel_core::{Backend, Dirty, Lease, NetworkConfig, OpenBackend, OpenRequest, PeerSet, SyncRequest};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let hosts = [Namespace::create()?, Namespace::create()?];
    let other = format!("/proc/{}/fd/{}", std::process::id(), hosts[1].as_fd().as_raw_fd());
    shell(&hosts[0], &format!("ip link add eth0 type veth peer name eth0 netns {other}"))?;
    for (host, n) in hosts.iter().zip(1..) {
        shell(host, &format!("ip link set lo up; ip addr add 192.168.64.{n}/24 dev eth0; ip link set eth0 up"))?;
    }
    let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
    let (mut backends, mut leases) = (Vec::new(), Vec::new());
    for (host, n) in hosts.iter().zip(1..) {
        let external = external_interface(host, "eth0")?;
        let request = OpenRequest::new(&config, &external);
        let mut backend = OpenVxlan::new(host.clone()).open(request)?;
        let own = Lease::new(format!("10.5.{n}.0-24").parse()?, backend.attrs().at(external.public));
        backend.configure(&own)?;
        (backends.push(backend), leases.push(own));
    }
    let mut sync = |host: usize| {
        let peers = PeerSet::all_of([leases[1 - host].clone()]);
        let request = SyncRequest::new(&peers, &Dirty::All, Instant::now());
        let report = backends[host].sync(request);
        println!("host {}: {} written, failed {:?}", host + 1, report.written, report.failed);
    };
    (sync(0), sync(1));
    talk(&hosts)?;
    shell(&hosts[0], "ip route del 10.5.2.0/24; ip neigh flush dev flannel.1 nud permanent")?;
    sync(0);
    talk(&hosts)
}

/// Sends datagrams through the tunnel until one arrives.
fn talk([from, to]: &[Namespace; 2]) -> Outcome<()> {
    let (client, server) = (from.run(|| UdpSocket::bind("10.5.1.0:0"))??, to.run(|| UdpSocket::bind("10.5.2.0:9000"))??);
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    // A new link may lose the first datagram.
    let mut send = || client.send_to(b"hello", "10.5.2.0:9000").and_then(|_| server.recv_from(&mut [0; 8])).ok();
    println!("host 2 received from {}", (0..300).find_map(|_| send()).ok_or("host 2 received nothing")?.1.ip());
    Ok(())
}

fn shell(host: &Namespace, commands: &str) -> Outcome<()> {
    let status = host.run(|| std::process::Command::new("sh").args(["-ec", commands]).status())??;
    status.success().then_some(()).ok_or_else(|| commands.to_owned().into())
}
