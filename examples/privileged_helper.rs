//! Privilege separation: an unprivileged agent selects the peers, and a privileged helper runs the networks.
//!
//! The protocol on the socket between them is one line per host with its subnet and its record, as in a registry; an empty
//! line ends the list. When the agent dies, the helper keeps and repairs the last state.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints its results")]

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::{net::UnixStream as Socket, process::CommandExt};

use flannel_backend_vxlan::{OpenVxlan, external_interface};
use flannel_core::{Network, NetworkConfig, NetworkOptions, Revision, StaticLeaseManager, Term, read_record};
use flannel_examples::{pod, ready, run, show_ping, until};
use flannel_testing::{INTERFACE, Lab, LabOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

/// The maximum size of a list in bytes, so that the agent cannot exhaust the helper's memory.
const LIMIT: u64 = 16 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("agent") {
        return agent();
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(helper())
}

/// Runs as root: one network per host, with the peers that the agent sends.
async fn helper() -> Result<(), Box<dyn Error>> {
    let lab = Lab::new(&LabOptions::default())?;
    let (mut networks, mut ends) = (Vec::new(), Vec::new());
    for (host, subnet) in lab.hosts.iter().zip(["10.5.1.0-24", "10.5.2.0-24"]) {
        let config = NetworkConfig::parse(r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#)?;
        let plane = StaticLeaseManager::new(config, subnet.parse()?)?;
        let external = external_interface(&host.namespace, INTERFACE)?;
        let backend = OpenVxlan::new(host.namespace.clone());
        let (network, task) = Network::new(NetworkOptions::new(plane.clone(), backend, external));
        run(task);
        let (ours, theirs) = Socket::pair()?;
        ours.set_nonblocking(true)?;
        tokio::spawn(async move { plane.set_unavailable(format!("agent: {:?}", serve(&plane, ours).await)) });
        networks.push(network);
        ends.push(OwnedFd::from(theirs));
    }
    let (Some(two), Some(one)) = (ends.pop(), ends.pop()) else { return Err("expected two hosts".into()) };
    // Run this program again as `nobody`, with the sockets as its standard input and output, and close our copies.
    let mut command = std::process::Command::new("/proc/self/exe");
    let mut agent = command.arg("agent").uid(65534).gid(65534).stdin(one).stdout(two).spawn()?;
    drop(command);
    let (one, two) = (ready(&networks[0], 1).await?, ready(&networks[1], 1).await?);
    let pods = [pod(&lab.hosts[0], &one)?, pod(&lab.hosts[1], &two)?];
    show_ping(&pods[0], &pods[1]).await?;
    agent.kill()?;
    println!("the agent was killed: {}", agent.wait()?);
    until("the helper to notice", || networks[0].summary().registry.unavailable.is_some()).await?;
    show_ping(&pods[1], &pods[0]).await?;
    println!("in order without the agent: {}", networks[0].summary().is_in_order());
    Ok(())
}

/// Sends the host's lease to the agent, and applies the lists of peers that it sends.
async fn serve(plane: &StaticLeaseManager, socket: Socket) -> std::io::Result<()> {
    let (read, mut write) = tokio::net::UnixStream::from_std(socket)?.into_split();
    let own = plane.lease().await;
    write.write_all(format!("{} {}\n", own.subnet, own.attrs.to_record()).as_bytes()).await?;
    let (mut lines, mut peers) = (tokio::io::BufReader::new(read.take(LIMIT)).lines(), Vec::new());
    while let Some(line) = lines.next_line().await? {
        let Some((subnet, record)) = line.split_once(' ') else {
            plane.set_peers(std::mem::take(&mut peers));
            lines.get_mut().get_mut().set_limit(LIMIT);
            continue;
        };
        match read_record(subnet, record.as_bytes(), Revision::default(), Term::Permanent) {
            Ok(peer) => peers.push(peer),
            Err(bad) => println!("ignored: {bad}"),
        }
    }
    Ok(())
}

/// Runs as `nobody`, without capabilities.
fn agent() -> Result<(), Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rights = status.lines().filter(|line| line.starts_with("Uid") || line.starts_with("CapEff"));
    eprintln!("the agent runs with {}", rights.collect::<Vec<_>>().join(" ").replace('\t', " "));
    let sockets =
        [std::io::stdin().as_fd().try_clone_to_owned()?, std::io::stdout().as_fd().try_clone_to_owned()?];
    let mut hosts: Vec<_> = sockets.into_iter().map(|fd| BufReader::new(Socket::from(fd))).collect();
    let mut list = String::new();
    for host in &mut hosts {
        host.read_line(&mut list)?;
    }
    for host in &hosts {
        host.get_ref().write_all(format!("{list}\n").as_bytes())?;
    }
    // Returns when the helper exits.
    Ok(hosts[0].read_line(&mut list).map(drop)?)
}
