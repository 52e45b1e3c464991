//! Tables of our own in nftables: replaced whole, in one transaction, by one run of `nft`; compared by netlink, without
//! any program.

use std::fmt::Write as _;

use flannel_netlink::{Error, IpFamily, Namespace, NftContents, NftFamily, NftTable, Nftables};

use crate::program::{Program, ProgramError};
use crate::rules::{self, KUBE_PROXY_MARK, OverlayPrefixes, Rule, RuleOptions, Selector, Verdict};

/// The program.
pub(crate) const NFT: Program = Program { name: "nft", package: "nftables" };

/// The chains of the table that holds the rules.
pub(crate) const MASQUERADE: &str = "postrtg";
pub(crate) const FORWARD: &str = "forward";

/// How often a table is written again because somebody else changed something during the write, so that it is not known
/// whether the table is as it was written.
const ATTEMPTS: usize = 3;

/// Why a table in nftables is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftablesError {
    /// The program did not work.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel has no nftables, or does not let this process ask: have the rules in iptables, or see why.
    #[error(
        "the kernel does not answer about nftables: it needs CONFIG_NF_TABLES, and this process CAP_NET_ADMIN"
    )]
    Unavailable,
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// The table that holds the rules of one family.
pub(crate) fn rules_table(family: IpFamily) -> NftTable {
    match family {
        IpFamily::V4 => NftTable { family: NftFamily::Ip, name: "flannel-ipv4".to_owned() },
        IpFamily::V6 => NftTable { family: NftFamily::Ip6, name: "flannel-ipv6".to_owned() },
    }
}

/// The table for a network, in the syntax of `nft`; `None` if it needs no rules.
pub(crate) fn rules_script(nets: &OverlayPrefixes, options: &RuleOptions) -> Option<String> {
    let (masquerade, forward) = (rules::masquerade(nets, options), rules::forward(nets, options));
    if masquerade.is_empty() && forward.is_empty() {
        return None;
    }
    let table = rules_table(nets.family());
    let mut text = format!("table {table} {{\n\tcomment \"rules for {}\"\n", table.name);
    let chains = [
        (
            MASQUERADE,
            "chain to manage traffic masquerading by flannel",
            "nat hook postrouting priority 100",
            masquerade,
        ),
        (FORWARD, "chain to accept flannel traffic", "filter hook forward priority 0", forward),
    ];
    for (name, comment, hook, rules) in chains {
        if rules.is_empty() {
            continue;
        }
        let _ =
            write!(text, "\tchain {name} {{\n\t\tcomment \"{comment}\"\n\t\ttype {hook}; policy accept;\n");
        for rule in rules {
            let _ = writeln!(text, "\t\t{}", rule_text(&rule, table.family));
        }
        text += "\t}\n";
    }
    Some(text + "}\n")
}

fn rule_text(rule: &Rule, family: NftFamily) -> String {
    let mut text = String::new();
    if rule.marked {
        let _ = write!(text, "meta mark & {KUBE_PROXY_MARK:#010x} == {KUBE_PROXY_MARK:#010x} ");
    }
    for (field, selector) in [("saddr", rule.source), ("daddr", rule.destination)] {
        if let Some(Selector { net, negated }) = selector {
            let _ = write!(text, "{family} {field} {}{net} ", if negated { "!= " } else { "" });
        }
    }
    text + match rule.verdict {
        Verdict::Return => "return",
        Verdict::Masquerade { fully_random: true } => "masquerade fully-random",
        Verdict::Masquerade { fully_random: false } => "masquerade",
        Verdict::Accept => "accept",
    }
}

/// A table of ours.
#[derive(Debug)]
pub(crate) struct OwnTable {
    table: NftTable,
    /// The script that was last written, and what the kernel held after it.
    kept: Option<(String, NftContents)>,
}

impl OwnTable {
    pub(crate) fn new(table: NftTable) -> Self {
        Self { table, kept: None }
    }

    pub(crate) fn table(&self) -> &NftTable {
        &self.table
    }

    /// Makes the table as a script says, or sees to it that there is none. Tells whether something had to be changed.
    ///
    /// What is in a table that an earlier process made is not compared but replaced.
    pub(crate) async fn keep(
        &mut self,
        namespace: &Namespace,
        kernel: &mut Nftables,
        script: Option<&str>,
    ) -> Result<bool, NftablesError> {
        let (_, contents) = kernel.contents(&self.table)?;
        let Some(script) = script else {
            self.kept = None;
            if contents.is_some() {
                NFT.run(namespace, &["-f", "-"], &format!("delete table {}\n", self.table)).await?;
            }
            return Ok(contents.is_some());
        };
        if let (Some((kept, expected)), Some(contents)) = (&self.kept, &contents)
            && (kept.as_str(), expected) == (script, contents)
        {
            return Ok(false);
        }
        self.kept = None;
        for _ in 0..ATTEMPTS {
            let before = kernel.generation()?;
            self.write(namespace, script).await?;
            let (after, contents) = kernel.contents(&self.table)?;
            self.kept = contents.map(|contents| (script.to_owned(), contents));
            // The write is one change; any other one may have been to this table.
            if after == before.wrapping_add(1) {
                break;
            }
        }
        Ok(true)
    }

    async fn write(&self, namespace: &Namespace, script: &str) -> Result<(), ProgramError> {
        // To delete a table that is not there would be an error.
        let replace = |script: &str| format!("add table {0}\ndelete table {0}\n{script}", self.table);
        let refused = match NFT.run(namespace, &["-f", "-"], &replace(script)).await {
            Err(error @ ProgramError::Failed { .. }) => error,
            result => return result.map(drop),
        };
        // Versions before 0.9.7 know no comments of tables and chains.
        let plain: Vec<&str> =
            script.lines().filter(|line| !line.trim_start().starts_with("comment ")).collect();
        NFT.run(namespace, &["-f", "-"], &replace(&plain.join("\n"))).await.map(drop).map_err(|_| refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: RuleOptions = RuleOptions { masquerade: true, fully_random: true, forward: true };

    fn nets(network: &str, subnet: &str) -> OverlayPrefixes {
        OverlayPrefixes::new(network.parse().expect("net"), subnet.parse().expect("net")).expect("nets")
    }

    #[test]
    fn the_table_is_upstreams_with_its_two_mistakes_put_right() {
        let expected = r#"table ip flannel-ipv4 {
	comment "rules for flannel-ipv4"
	chain postrtg {
		comment "chain to manage traffic masquerading by flannel"
		type nat hook postrouting priority 100; policy accept;
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 172.30.1.0/24 ip daddr 172.30.0.0/16 return
		ip saddr 172.30.0.0/16 ip daddr 172.30.1.0/24 return
		ip saddr != 172.30.0.0/16 ip daddr 172.30.1.0/24 return
		ip saddr 172.30.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 172.30.0.0/16 ip daddr 172.30.0.0/16 masquerade fully-random
	}
	chain forward {
		comment "chain to accept flannel traffic"
		type filter hook forward priority 0; policy accept;
		ip saddr 172.30.0.0/16 accept
		ip daddr 172.30.0.0/16 accept
	}
}
"#;
        assert_eq!(rules_script(&nets("172.30.0.0/16", "172.30.1.0/24"), &ALL).as_deref(), Some(expected));
    }

    #[test]
    fn ipv6_has_its_own_table_words_and_multicast_addresses() {
        let script = rules_script(&nets("fd10:5::/48", "fd10:5:0:1::/64"), &ALL).expect("rules");
        assert!(script.starts_with("table ip6 flannel-ipv6 {\n"), "{script}");
        assert!(
            script.contains("\t\tip6 saddr fd10:5::/48 ip6 daddr != ff00::/8 masquerade fully-random\n"),
            "{script}"
        );
    }

    #[test]
    fn what_is_not_wanted_has_no_chain_and_nothing_no_table() {
        let nets = nets("172.30.0.0/16", "172.30.1.0/24");
        let none = RuleOptions { masquerade: false, forward: false, ..ALL };
        assert_eq!(rules_script(&nets, &none), None);
        let forward = rules_script(&nets, &RuleOptions { forward: true, ..none }).expect("forward");
        assert!(!forward.contains("chain postrtg") && forward.contains("chain forward"), "{forward}");
        let masquerade = RuleOptions { masquerade: true, fully_random: false, ..none };
        let masquerade = rules_script(&nets, &masquerade).expect("masquerade");
        assert!(
            !masquerade.contains("chain forward") && !masquerade.contains("fully-random"),
            "{masquerade}"
        );
    }
}
