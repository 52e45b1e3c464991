//! The table that restricts a tunnel port to peers.
//!
//! A host that can send to the port of a VXLAN or UDP tunnel can inject packets into the network from any address in it.
//! The table drops datagrams that do not come from the public address of a peer. It works with iptables and nftables
//! alike: no other chain can accept what one chain drops.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use flannel_netlink::{NftFamily, NftTable};

/// Returns the table for a port.
pub(crate) fn table(port: u16) -> NftTable {
    NftTable { family: NftFamily::Inet, name: format!("flannel-port-{port}") }
}

/// Returns the table that accepts only these source addresses, in the syntax of `nft`.
pub(crate) fn script(port: u16, peers: &BTreeSet<IpAddr>) -> String {
    let mut text =
        format!("table {} {{\n\tcomment \"peers that may use the tunnel of flannel\"\n", table(port));
    let sets = [("peers4", "ipv4_addr", true), ("peers6", "ipv6_addr", false)];
    for (name, kind, is_ipv4) in sets {
        let _ = write!(text, "\tset {name} {{\n\t\ttype {kind}\n");
        let elements: Vec<_> =
            peers.iter().filter(|peer| peer.is_ipv4() == is_ipv4).map(ToString::to_string).collect();
        if !elements.is_empty() {
            let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(", "));
        }
        text += "\t}\n";
    }
    // A counter in the rule would change the table with every packet.
    let _ = write!(
        text,
        "\tcounter strangers {{\n\t}}\n\tchain input {{\n\t\ttype filter hook input priority 0; policy accept;\n\
         \t\tudp dport != {port} accept\n\
         \t\tip saddr @peers4 accept\n\
         \t\tip6 saddr @peers6 accept\n\
         \t\tudp dport {port} counter name strangers drop\n\t}}\n}}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peers_are_elements_of_sets() {
        let peers = ["192.0.2.1", "fd00::1", "192.0.2.2"].map(|peer| peer.parse().expect("address"));
        let script = script(8472, &peers.into());
        assert!(script.starts_with("table inet flannel-port-8472 {\n"), "{script}");
        assert!(script.contains("type ipv4_addr\n\t\telements = { 192.0.2.1, 192.0.2.2 }\n"), "{script}");
        assert!(script.contains("type ipv6_addr\n\t\telements = { fd00::1 }\n"), "{script}");
        assert!(!super::script(8472, &BTreeSet::new()).contains("elements"), "nft refuses an empty list");
    }
}
