//! A fingerprint of a legacy iptables table, read from the kernel without a program. The kernel announces no changes to
//! these tables.
//!
//! The options and structures are those of `linux/netfilter_ipv4/ip_tables.h` and `linux/netfilter_ipv6/ip6_tables.h`.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use flannel_netlink::{IpFamily, Namespace};

use crate::sys;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, also of IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`: both requests start with a name.
const NAME: usize = 32;
/// `sizeof(struct ipt_getinfo)`; the last member is the size of all entries, in bytes.
const INFO: usize = 84;
/// `sizeof(struct ipt_get_entries)`: the name, the size, and padding for the first entry.
const ENTRIES_HEADER: usize = (NAME + 4).next_multiple_of(align_of::<u64>());
/// How often to retry when the table changes between the two requests.
const ATTEMPTS: usize = 4;

/// The offsets of the length and the counters in an entry (`struct ipt_entry`, `struct ip6t_entry`).
struct EntryLayout {
    family: libc::c_int,
    level: libc::c_int,
    next_offset: usize,
    counters: usize,
}

fn layout(family: IpFamily) -> EntryLayout {
    let (family, level, next_offset, counters) = match family {
        IpFamily::V4 => (libc::AF_INET, libc::SOL_IP, 90, 96_usize),
        IpFamily::V6 => (libc::AF_INET6, libc::SOL_IPV6, 142, 148),
    };
    EntryLayout { family, level, next_offset, counters: counters.next_multiple_of(align_of::<u64>()) }
}

/// Hashes the rules of a table without their counters.
///
/// The kernel creates the table if it does not exist, as for `iptables`.
pub(crate) fn fingerprint(namespace: &Namespace, family: IpFamily, table: &str) -> io::Result<u64> {
    let layout = layout(family);
    let socket = namespace.run(|| sys::datagram_socket(layout.family))??;
    for _ in 0..ATTEMPTS {
        match entries(socket.as_fd(), &layout, table) {
            Ok(entries) => return Ok(hash(entries, &layout)),
            // The size changed in between.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINVAL)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

fn entries(socket: BorrowedFd<'_>, layout: &EntryLayout, table: &str) -> io::Result<Vec<u8>> {
    let name = &table.as_bytes()[..table.len().min(NAME - 1)];
    let mut info = [0; INFO];
    info[..name.len()].copy_from_slice(name);
    sys::read_option(socket, layout.level, GET_INFO, &mut info)?;
    let size = [info[INFO - 4], info[INFO - 3], info[INFO - 2], info[INFO - 1]];
    let length = ENTRIES_HEADER + u32::from_ne_bytes(size) as usize;
    let mut answer = vec![0; length];
    answer[..name.len()].copy_from_slice(name);
    answer[NAME..NAME + 4].copy_from_slice(&size);
    let read = sys::read_option(socket, layout.level, GET_ENTRIES, &mut answer)?;
    Ok(answer.drain(ENTRIES_HEADER.min(read)..read).collect())
}

fn hash(mut entries: Vec<u8>, layout: &EntryLayout) -> u64 {
    let mut start = 0;
    while let Some(entry) = entries.get_mut(start..) {
        let Some(&[low, high]) = entry.get(layout.next_offset..layout.next_offset + 2) else { break };
        if let Some(counters) = entry.get_mut(layout.counters..layout.counters + 16) {
            counters.fill(0);
        }
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if length == 0 {
            break;
        }
        start += length;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&entries);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Command;

    use super::*;

    /// Runs a program in the namespace.
    fn run(namespace: &Namespace, line: &str) {
        let mut words = line.split(' ');
        let program = words.next().expect("a program");
        let output = namespace.run(|| Command::new(program).args(words).output()).expect("namespace");
        let output =
            output.unwrap_or_else(|error| panic!("{program}: {error}; run: apt-get install iptables"));
        assert!(output.status.success(), "{line}: {output:?}");
    }

    #[test]
    #[allow(clippy::panic, reason = "a test fails by panicking")]
    fn the_fingerprint_changes_with_the_rules_but_not_with_their_counters() {
        for (family, program, host) in
            [(IpFamily::V4, "iptables-legacy", "127.0.0.1"), (IpFamily::V6, "ip6tables-legacy", "::1")]
        {
            let namespace =
                Namespace::create().expect("these tests create network namespaces: run them as root");
            run(&namespace, "ip link set lo up");
            let current = || fingerprint(&namespace, family, "filter").expect("readable");
            for rule in
                ["-A OUTPUT -j ACCEPT", "-A FORWARD -p tcp -j DROP", "-A FORWARD -p udp -j DROP", "-N ours"]
            {
                run(&namespace, &format!("{program} --wait {rule}"));
            }
            let before = current();
            let send = || UdpSocket::bind((host, 0)).and_then(|socket| socket.send_to(b"x", (host, 9)));
            namespace.run(send).expect("namespace").expect("sent");
            assert_eq!(current(), before, "{family}: packets were counted");
            // A rule of the same size replaces it.
            run(&namespace, &format!("{program} --wait -R FORWARD 1 -p udp -j DROP"));
            let replaced = current();
            assert_ne!(replaced, before, "{family}");
            run(&namespace, &format!("{program} --wait -R FORWARD 1 -p tcp -j DROP"));
            assert_eq!(current(), before, "{family}: restored");
            run(&namespace, &format!("{program} --wait -F FORWARD"));
            assert_ne!(current(), before, "{family}");
        }
    }
}
