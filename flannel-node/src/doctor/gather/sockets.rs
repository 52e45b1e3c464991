//! The sockets on a UDP port of this namespace (`/proc/net/udp`, proc_pid_net(5)).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::doctor::facts::Socket;

/// Returns all sockets on a port. Those of the kernel, such as a VXLAN device's, have no owner.
pub(super) fn on(port: u16) -> Vec<Socket> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let listed = read("/proc/thread-self/net/udp") + &read("/proc/thread-self/net/udp6");
    let found = listed.lines().filter_map(line).filter(|(_, local, _)| *local == port);
    found.map(|(address, port, inode)| Socket { address, port, owner: owner(inode) }).collect()
}

/// Parses the address, port and inode of a socket.
fn line(line: &str) -> Option<(IpAddr, u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    Some((read_address(address)?, u16::from_str_radix(port, 16).ok()?, fields.get(9)?.parse().ok()?))
}

/// Parses hexadecimal 32-bit words in native byte order.
fn read_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if text.len() == 8 {
        return Some(IpAddr::V4(Ipv4Addr::from(word(0)?)));
    }
    let bytes: Vec<u8> = [0, 8, 16, 24].into_iter().map(word).collect::<Option<Vec<_>>>()?.concat();
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
}

/// Returns the process that owns a socket, if it is visible.
fn owner(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let mut targets = open.filter_map(|file| fs::read_link(file.path()).ok());
        if targets.any(|target| target.as_os_str() == wanted.as_str()) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn the_owner_of_a_port_is_found() {
        for host in ["127.0.0.1", "::1"] {
            let socket = UdpSocket::bind((host, 0)).expect("a port");
            let local = socket.local_addr().expect("its address");
            let found = on(local.port());
            let own = found.iter().find(|found| found.address == local.ip()).expect("listed");
            assert_eq!(own.owner.as_ref().map(|(pid, _)| *pid), Some(std::process::id()), "{found:?}");
        }
    }

    #[test]
    fn lines_that_are_not_sockets_are_passed_over() {
        for text in
            ["", "  sl  local_address rem_address   st", "0: XY:0 0 0 0 0 0 0 0 5", "0: 0100007F:2118"]
        {
            assert_eq!(line(text), None, "{text:?}");
        }
    }
}
