//! The rules in iptables: read with one `iptables-save` per table, changed with one `iptables-restore` per family.

use std::hash::{DefaultHasher, Hasher};

use flannel_netlink::{IpFamily, Namespace, NftFamily, NftTable, Nftables};

use crate::program::{Program, ProgramError};
use crate::rules::{OverlayPrefixes, RuleOptions};
use listing::TableListing;
use plan::{DOCKER_USER, DesiredTable, FORWARD, MASQUERADE, OwnChain};

mod legacy;
pub(crate) mod listing;
mod obstacles;
mod plan;
pub(crate) mod spec;

/// The chains that hold flannel's rules or call them, with their tables.
pub(crate) const WATCHED: [(&str, &str); 5] = [
    (MASQUERADE.table, MASQUERADE.builtin),
    (MASQUERADE.table, MASQUERADE.chain),
    (FORWARD.table, FORWARD.builtin),
    (FORWARD.table, FORWARD.chain),
    (FORWARD.table, DOCKER_USER),
];

/// Why the rules in iptables are not as desired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IptablesError {
    /// A program of iptables failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A table contains rules that iptables cannot show, so it cannot change the table: use nftables (`EnableNFTables`),
    /// or remove what `nft` added to the table.
    #[error(
        "{program} cannot show table {table}, which `nft` must have changed; set \"EnableNFTables\": true"
    )]
    NotShown {
        /// The program.
        program: &'static str,
        /// The table.
        table: &'static str,
    },
}

/// The programs of one family.
#[derive(Clone, Copy, Debug)]
struct Programs {
    iptables: Program,
    save: Program,
    restore: Program,
}

/// Returns the name of the program that changes tables of a family.
pub(crate) fn restore(family: IpFamily) -> &'static str {
    programs(family).restore.name
}

fn programs(family: IpFamily) -> Programs {
    let program = |name| Program { name, package: "iptables" };
    let [iptables, save, restore] = match family {
        IpFamily::V4 => ["iptables", "iptables-save", "iptables-restore"],
        IpFamily::V6 => ["ip6tables", "ip6tables-save", "ip6tables-restore"],
    };
    Programs { iptables: program(iptables), save: program(save), restore: program(restore) }
}

/// The variant of iptables that is installed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Variant {
    /// Whether its rules are in nftables, whose changes the kernel announces.
    pub(crate) is_nft: bool,
    /// `--random-fully` and `--wait` of `iptables-restore` came with version 1.6.2.
    is_at_least_1_6_2: bool,
}

impl Variant {
    /// Reads the output of `iptables --version`: `iptables v1.8.9 (nf_tables)`.
    fn read(text: &str) -> Self {
        let number = text.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
        let version: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
        // A version that cannot be read is a newer one.
        let is_at_least_1_6_2 = version.is_empty() || version >= vec![1, 6, 2];
        Self { is_nft: text.contains("nf_tables"), is_at_least_1_6_2 }
    }

    /// Returns the arguments that make `iptables-restore` keep other rules and wait for the lock.
    pub(crate) fn restore_arguments(self) -> &'static [&'static str] {
        if self.is_at_least_1_6_2 { &["--noflush", "--wait"] } else { &["--noflush"] }
    }
}

/// The rules of one family.
#[derive(Debug)]
pub(crate) struct Iptables {
    family: IpFamily,
    variant: Option<Variant>,
}

/// The desired rules of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DesiredRules<'a> {
    /// The prefixes of this family; `None` to remove the rules.
    pub(crate) nets: Option<OverlayPrefixes>,
    /// The prefixes that this host has and had.
    pub(crate) owned: &'a [OverlayPrefixes],
    pub(crate) options: RuleOptions,
    /// Whether to look for rules of earlier runs and versions.
    pub(crate) leftovers: bool,
}

/// What reconciling the rules found.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct IptablesReport {
    /// The number of commands that were needed.
    pub(crate) changes: usize,
    /// Rules of others that stop forwarded packets of the network.
    pub(crate) obstacles: Vec<String>,
}

/// The changes to make, and what else was found.
#[derive(Debug)]
pub(crate) struct IptablesPlan {
    report: IptablesReport,
    /// The input of `iptables-restore`; empty if nothing has to change.
    pub(crate) payload: String,
    pub(crate) variant: Variant,
}

impl Iptables {
    pub(crate) fn new(family: IpFamily) -> Self {
        Self { family, variant: None }
    }

    pub(crate) fn family(&self) -> IpFamily {
        self.family
    }

    /// Returns the variant, once a pass has read it.
    pub(crate) fn variant(&self) -> Option<Variant> {
        self.variant
    }

    /// Returns hashes of the chains that hold flannel's rules, without running a program; `None` if that is impossible.
    pub(crate) fn fingerprint(
        &self,
        namespace: &Namespace,
        kernel: Option<&mut Nftables>,
        options: &RuleOptions,
    ) -> Option<Vec<u64>> {
        let kept = [(&MASQUERADE, options.masquerade), (&FORWARD, options.forward)];
        let mut kept = kept.into_iter().filter(|(_, is_on)| *is_on).map(|(own_chain, _)| own_chain);
        if !self.variant?.is_nft {
            return kept
                .map(|own_chain| legacy::fingerprint(namespace, self.family, own_chain.table).ok())
                .collect();
        }
        let kernel = kernel?;
        kept.try_fold(Vec::new(), |mut numbers, own_chain| {
            let table = NftTable { family: nft_family(self.family), name: own_chain.table.to_owned() };
            for chain in [own_chain.builtin, own_chain.chain].into_iter().chain(own_chain.foreign_caller) {
                let mut hasher = DefaultHasher::new();
                hasher.write(&kernel.rules_as_bytes(&table, chain).ok()?);
                numbers.push(hasher.finish());
            }
            Some(numbers)
        })
    }

    /// Returns whether the programs are installed.
    pub(crate) fn is_installed(&self) -> bool {
        programs(self.family).restore.is_installed()
    }

    /// Makes the rules as desired.
    pub(crate) async fn reconcile(
        &mut self,
        namespace: &Namespace,
        desired: &DesiredRules<'_>,
    ) -> Result<IptablesReport, IptablesError> {
        match self.try_reconcile(namespace, desired).await {
            // Somebody may have changed the table between the read and the change.
            Err(IptablesError::Program(ProgramError::Failed { .. })) => {
                self.try_reconcile(namespace, desired).await
            }
            result => result,
        }
    }

    async fn try_reconcile(
        &mut self,
        namespace: &Namespace,
        desired: &DesiredRules<'_>,
    ) -> Result<IptablesReport, IptablesError> {
        let IptablesPlan { report, payload, variant } = self.plan(namespace, desired).await?;
        if !payload.is_empty() {
            let restore = programs(self.family).restore;
            restore.run(namespace, variant.restore_arguments(), &payload).await?;
        }
        Ok(report)
    }

    /// Computes the changes without making them.
    pub(crate) async fn plan(
        &mut self,
        namespace: &Namespace,
        desired: &DesiredRules<'_>,
    ) -> Result<IptablesPlan, IptablesError> {
        let programs = programs(self.family);
        let variant = match self.variant {
            Some(variant) => variant,
            None => Variant::read(&programs.iptables.run(namespace, &["--version"], "").await?),
        };
        self.variant = Some(variant);
        let mut options = desired.options;
        options.fully_random &= variant.is_at_least_1_6_2;
        let (mut report, mut payload) = (IptablesReport::default(), String::new());
        for (own_chain, is_on) in [(&MASQUERADE, options.masquerade), (&FORWARD, options.forward)] {
            let may_have_left = desired.leftovers && self.may_exist(namespace, variant, own_chain);
            if !(is_on || may_have_left) {
                continue;
            }
            let listing = list(namespace, &programs, own_chain).await?;
            let rules = own_chain.rules(desired.nets.as_ref(), &options);
            let desired_table =
                DesiredTable { own_chain, rules, owned: desired.owned, v011: desired.leftovers && is_on };
            let changes = desired_table.changes(&listing);
            if !changes.is_empty() {
                payload += &format!("*{}\n{}\nCOMMIT\n", own_chain.table, changes.join("\n"));
            }
            report.changes += changes.len();
            if let (true, Some(nets)) = (own_chain.table == FORWARD.table, desired.nets) {
                report.obstacles = obstacles::find(&listing, FORWARD.chain, &nets, self.family);
            }
        }
        Ok(IptablesPlan { report, payload, variant })
    }

    /// Returns whether a table that is not needed may hold flannel's rules. Listing a legacy table would create it, and the
    /// table nat makes the kernel track all connections.
    fn may_exist(&self, namespace: &Namespace, variant: Variant, own_chain: &OwnChain) -> bool {
        variant.is_nft || legacy_tables(namespace, self.family).lines().any(|name| name == own_chain.table)
    }
}

/// Returns the names of the existing legacy tables, one per line.
fn legacy_tables(namespace: &Namespace, family: IpFamily) -> String {
    let path = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    namespace.run(|| std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
}

/// Reads all tables of a family with each `iptables-save` that the host has. Returns the program that manages the tables,
/// whether they are in nftables, and the output.
pub(crate) async fn save_all(
    namespace: &Namespace,
    family: IpFamily,
    failures: &mut Vec<ProgramError>,
) -> Vec<(&'static str, bool, String)> {
    let Programs { iptables, save, .. } = programs(family);
    let mut saved = Vec::new();
    let mut is_nft = false;
    let both = async {
        is_nft = Variant::read(&iptables.run(namespace, &["--version"], "").await?).is_nft;
        save.run(namespace, &[], "").await
    };
    match both.await {
        Ok(text) => saved.push((iptables.name, is_nft, text)),
        Err(error) => failures.push(error),
    }
    if is_nft && !legacy_tables(namespace, family).is_empty() {
        let (name, save) = match family {
            IpFamily::V4 => ("iptables-legacy", "iptables-legacy-save"),
            IpFamily::V6 => ("ip6tables-legacy", "ip6tables-legacy-save"),
        };
        match (Program { name: save, package: "iptables" }).run(namespace, &[], "").await {
            Ok(text) => saved.push((name, false, text)),
            Err(error) => failures.push(error),
        }
    }
    saved
}

/// Returns the nftables family that holds the tables of the nf_tables variant.
fn nft_family(family: IpFamily) -> NftFamily {
    match family {
        IpFamily::V4 => NftFamily::Ip,
        IpFamily::V6 => NftFamily::Ip6,
    }
}

async fn list(
    namespace: &Namespace,
    programs: &Programs,
    own_chain: &OwnChain,
) -> Result<TableListing, IptablesError> {
    let text = programs.save.run(namespace, &["-t", own_chain.table], "").await?;
    let not_shown = || IptablesError::NotShown { program: programs.save.name, table: own_chain.table };
    TableListing::read(&text, own_chain.table).ok_or_else(not_shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variant_is_read_from_the_version() {
        for (text, is_nft, is_at_least_1_6_2) in [
            ("iptables v1.8.9 (nf_tables)\n", true, true),
            ("iptables v1.8.9 (legacy)\n", false, true),
            ("ip6tables v1.8.10 (nf_tables)", true, true),
            ("iptables v1.6.2", false, true),
            ("iptables v1.6.1", false, false),
            ("iptables v1.4.21", false, false),
            ("something else", false, true),
        ] {
            assert_eq!(Variant::read(text), Variant { is_nft, is_at_least_1_6_2 }, "{text}");
        }
    }
}
