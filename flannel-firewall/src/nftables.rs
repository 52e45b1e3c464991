//! Flannel's own tables in nftables. One run of `nft` replaces a table in one transaction; netlink compares it without a
//! program.

use std::fmt::Write as _;

use flannel_netlink::{Error, IpFamily, Namespace, NftContents, NftFamily, NftTable, Nftables};

use crate::program::{Program, ProgramError};
use crate::rules::{self, AddressSelector, KUBE_PROXY_MARK, OverlayPrefixes, Rule, RuleAction, RuleOptions};

/// The program that writes tables.
pub(crate) const NFT: Program = Program { name: "nft", package: "nftables" };

/// The chains of the table that holds the rules.
pub(crate) const MASQUERADE: &str = "postrtg";
pub(crate) const FORWARD: &str = "forward";

/// How often a table is written again when the ruleset changes during the write, so that its contents are uncertain.
const ATTEMPTS: usize = 3;

/// Why a table in nftables is not as desired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftablesError {
    /// `nft` failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The kernel lacks nftables, or does not allow this process to read it: use iptables, or grant the capability.
    #[error("nftables is not available: the kernel needs CONFIG_NF_TABLES, and this process CAP_NET_ADMIN")]
    Unavailable,
    /// Reading from the kernel failed.
    #[error(transparent)]
    Kernel(#[from] Error),
}

/// Returns the table that holds the rules of one family.
pub(crate) fn rules_table(family: IpFamily) -> NftTable {
    match family {
        IpFamily::V4 => NftTable { family: NftFamily::Ip, name: "flannel-ipv4".to_owned() },
        IpFamily::V6 => NftTable { family: NftFamily::Ip6, name: "flannel-ipv6".to_owned() },
    }
}

/// Returns the table for a network in the syntax of `nft`; `None` if it needs no rules.
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
        if let Some(AddressSelector { net, negated }) = selector {
            let _ = write!(text, "{family} {field} {}{net} ", if negated { "!= " } else { "" });
        }
    }
    text + match rule.action {
        RuleAction::Return => "return",
        RuleAction::Masquerade { fully_random: true } => "masquerade fully-random",
        RuleAction::Masquerade { fully_random: false } => "masquerade",
        RuleAction::Accept => "accept",
    }
}

/// One of flannel's tables.
#[derive(Debug)]
pub(crate) struct OwnTable {
    table: NftTable,
    /// The script that was last written, and the contents of the table in the kernel after that.
    written: Option<(String, NftContents)>,
}

impl OwnTable {
    pub(crate) fn new(table: NftTable) -> Self {
        Self { table, written: None }
    }

    pub(crate) fn table(&self) -> &NftTable {
        &self.table
    }

    /// Makes the table as the script defines it, or removes it. Returns whether it had to be changed.
    ///
    /// A table that an earlier process wrote is replaced without comparing.
    pub(crate) async fn reconcile(
        &mut self,
        namespace: &Namespace,
        kernel: &mut Nftables,
        script: Option<&str>,
    ) -> Result<bool, NftablesError> {
        let (_, contents) = kernel.contents(&self.table)?;
        let Some(script) = script else {
            self.written = None;
            if contents.is_some() {
                NFT.run(namespace, &["-f", "-"], &format!("delete table {}\n", self.table)).await?;
            }
            return Ok(contents.is_some());
        };
        if let (Some((written, expected)), Some(contents)) = (&self.written, &contents)
            && (written.as_str(), expected) == (script, contents)
        {
            return Ok(false);
        }
        self.written = None;
        for _ in 0..ATTEMPTS {
            let before = kernel.generation()?;
            self.write(namespace, script).await?;
            let (after, contents) = kernel.contents(&self.table)?;
            self.written = contents.map(|contents| (script.to_owned(), contents));
            // The write is one generation; another change may have been to this table.
            if after == before.wrapping_add(1) {
                break;
            }
        }
        Ok(true)
    }

    async fn write(&self, namespace: &Namespace, script: &str) -> Result<(), ProgramError> {
        // Deleting a table that does not exist would fail.
        let replace = |script: &str| format!("add table {0}\ndelete table {0}\n{script}", self.table);
        let refused = match NFT.run(namespace, &["-f", "-"], &replace(script)).await {
            Err(error @ ProgramError::Failed { .. }) => error,
            result => return result.map(drop),
        };
        // Versions before 0.9.7 do not know comments of tables and chains.
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
    fn the_table_is_that_of_upstream_with_two_mistakes_corrected() {
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
    fn ipv6_has_a_table_and_multicast_range_of_its_own() {
        let script = rules_script(&nets("fd10:5::/48", "fd10:5:0:1::/64"), &ALL).expect("rules");
        assert!(script.starts_with("table ip6 flannel-ipv6 {\n"), "{script}");
        assert!(
            script.contains("\t\tip6 saddr fd10:5::/48 ip6 daddr != ff00::/8 masquerade fully-random\n"),
            "{script}"
        );
    }

    #[test]
    fn disabled_rules_have_no_chain_and_without_rules_there_is_no_table() {
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
