//! nftables, read while the program `nft` changes it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a step that fails is a failed test")]

mod common;

use std::io::Write as _;
use std::process::{Command, Stdio};

use common::*;
use flannel_netlink::{NftFamily, NftMonitor, NftNotification, NftRule, NftTable, NftVerdict, Nftables};

/// Runs a script with `nft` in a namespace.
fn nft(namespace: &flannel_netlink::Namespace, script: &str) {
    let run = || {
        let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().unwrap().write_all(script.as_bytes())?;
        child.wait()
    };
    let status = namespace.run(run).unwrap();
    let status = status.unwrap_or_else(|error| panic!("nft: {error}; run: apt-get install nftables"));
    assert!(status.success(), "{script}");
}

fn table(family: NftFamily, name: &str) -> NftTable {
    NftTable { family, name: name.to_owned() }
}

const OURS: &str = "table ip ours {
    set peers { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
    chain forward {
        type filter hook forward priority filter; policy drop;
        ip saddr 10.5.0.0/16 accept
        jump more
        counter reject
    }
    chain more { drop; }
}";

#[test]
fn a_change_is_announced_with_its_table_and_chain() {
    let namespace = own_namespace();
    let mut monitor = NftMonitor::open_in(&namespace).unwrap();
    nft(&namespace, OURS);
    nft(&namespace, "add rule ip ours more accept");
    let wanted =
        NftNotification::Changed { table: table(NftFamily::Ip, "ours"), chain: Some("more".to_owned()) };
    eventually("a notice of the chain", || monitor.try_next().unwrap().filter(|notice| *notice == wanted));
    nft(&namespace, "flush ruleset");
    let wanted = NftNotification::Changed { table: table(NftFamily::Ip, "ours"), chain: None };
    eventually("a notice of the table", || monitor.try_next().unwrap().filter(|notice| *notice == wanted));
}

#[test]
fn contents_differ_exactly_after_a_change() {
    let namespace = own_namespace();
    let mut nftables = Nftables::open_in(&namespace).unwrap();
    let ours = table(NftFamily::Ip, "ours");
    assert_eq!(nftables.contents(&ours).unwrap().1, None);
    nft(&namespace, OURS);
    let (generation, before) = nftables.contents(&ours).unwrap();
    let peers = &before.as_ref().unwrap().elements["peers"];
    assert_eq!(peers.iter().collect::<Vec<_>>(), [&[192, 0, 2, 1], &[192, 0, 2, 2]]);

    nft(&namespace, "table ip6 ours { chain forward { drop; }; }; table ip others { }");
    let (after, now) = nftables.contents(&ours).unwrap();
    assert!(after != generation && now == before, "other tables do not matter");
    assert_eq!(after, nftables.generation().unwrap());
    for change in [
        "add rule ip ours more accept",
        "delete element ip ours peers { 192.0.2.1 }",
        "add chain ip ours another",
        "chain ip ours forward { policy accept; }",
        "flush chain ip ours forward",
        "add set ip ours strangers { type ipv4_addr; }",
    ] {
        nft(&namespace, &format!("flush ruleset; {OURS}"));
        let (_, before) = nftables.contents(&ours).unwrap();
        nft(&namespace, change);
        assert_ne!(nftables.contents(&ours).unwrap().1, before, "{change}");
    }
}

#[test]
fn the_bytes_of_a_chain_change_with_its_rules_but_not_with_counters() {
    let namespace = own_namespace();
    let mut nftables = Nftables::open_in(&namespace).unwrap();
    let mut netlink = flannel_netlink::Netlink::open_in(&namespace).unwrap();
    set_up(&mut netlink, LOOPBACK, true);
    let counts = "table ip counts { chain output {
        type filter hook output priority filter;
        ip daddr 127.0.0.1 counter accept
        ip daddr 127.0.0.2 counter accept
    }
}";
    let counts_table = table(NftFamily::Ip, "counts");
    assert_eq!(nftables.rules_as_bytes(&counts_table, "output").unwrap(), []);
    nft(&namespace, counts);
    let before = nftables.rules_as_bytes(&counts_table, "output").unwrap();
    let whole = nftables.contents(&counts_table).unwrap().1;
    let send =
        || std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"x", "127.0.0.1:9"));
    namespace.run(send).unwrap().unwrap();
    assert_ne!(nftables.contents(&counts_table).unwrap().1, whole, "the packet was counted");
    assert_eq!(nftables.rules_as_bytes(&counts_table, "output").unwrap(), before);
    nft(&namespace, "add chain ip counts another; add rule ip counts another drop");
    assert_eq!(nftables.rules_as_bytes(&counts_table, "output").unwrap(), before);
    nft(&namespace, "add rule ip counts output ip daddr 127.0.0.3 counter accept");
    assert_ne!(nftables.rules_as_bytes(&counts_table, "output").unwrap(), before);
}

#[test]
fn hooks_policies_and_verdicts_are_read() {
    let namespace = own_namespace();
    let mut nftables = Nftables::open_in(&namespace).unwrap();
    assert_eq!(nftables.tables().unwrap(), []);
    nft(&namespace, OURS);
    let ours = table(NftFamily::Ip, "ours");
    assert_eq!(nftables.tables().unwrap(), std::slice::from_ref(&ours));
    let chains = nftables.chains().unwrap();
    let chains: Vec<_> =
        chains.iter().map(|chain| (chain.name.as_str(), chain.hook, chain.drops_by_policy)).collect();
    assert_eq!(chains, [("forward", Some(2), true), ("more", None, false)]);

    let rules = nftables.rules(&ours, "forward").unwrap();
    let verdicts: Vec<_> = rules.iter().map(|rule| rule.verdict.clone()).collect();
    assert_eq!(verdicts, [Some(NftVerdict::Accept), Some(NftVerdict::Jump("more".to_owned())), None]);
    assert_eq!(rules[2].expressions, ["counter", "reject"]);
    assert!(rules[0].expressions.contains(&"cmp".to_owned()), "{rules:?}");
    let drop = NftRule { expressions: vec!["immediate".to_owned()], verdict: Some(NftVerdict::Drop) };
    assert_eq!(nftables.rules(&ours, "more").unwrap(), [drop]);
    assert_eq!(nftables.rules(&ours, "none").unwrap(), []);
    assert_eq!(nftables.rules(&table(NftFamily::Ip6, "ours"), "more").unwrap(), []);
}
