//! The rules in iptables: compared with one `iptables-save` for each table, changed with one `iptables-restore` for each
//! family.

use std::hash::{DefaultHasher, Hasher};

use flannel_netlink::{IpFamily, Namespace, NftFamily, NftTable, Nftables};

use crate::obstacles;
use crate::program::{Program, ProgramError};
use crate::rules::{OverlayPrefixes, RuleOptions};
use listing::Listing;
use plan::{FORWARD, MASQUERADE, Place, Wanted};

mod legacy;
pub(crate) mod listing;
mod plan;
pub(crate) mod spec;

/// The chains whose change may concern us, with the names of their tables.
pub(crate) const WATCHED: [(&str, &str); 4] = [
    (MASQUERADE.table, MASQUERADE.builtin),
    (MASQUERADE.table, MASQUERADE.chain),
    (FORWARD.table, FORWARD.builtin),
    (FORWARD.table, FORWARD.chain),
];

/// Why the rules in iptables are not as they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IptablesError {
    /// A program of iptables did not work.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A table contains what iptables cannot show, so it cannot change it either: have the rules in nftables
    /// (`EnableNFTables`), or remove what `nft` put into the table.
    #[error(
        "{program} does not show table {table}, which `nft` must have changed; set \"EnableNFTables\": true"
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

/// The program that changes tables of a family from a text.
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

/// Which iptables there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Variant {
    /// Whether its rules are rules of nftables, of whose change the kernel tells.
    pub(crate) is_nft: bool,
    /// `--random-fully` and `--wait` of `iptables-restore` came with version 1.6.2.
    is_at_least_1_6_2: bool,
}

impl Variant {
    /// Reads what `iptables --version` says: `iptables v1.8.9 (nf_tables)`.
    fn read(text: &str) -> Self {
        let number = text.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
        let version: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
        // What cannot be read is newer than what this was written for.
        let is_at_least_1_6_2 = version.is_empty() || version >= vec![1, 6, 2];
        Self { is_nft: text.contains("nf_tables"), is_at_least_1_6_2 }
    }

    /// How `iptables-restore` is told to leave what it is not told of.
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

/// What there should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Desired<'a> {
    /// Our networks of the family, unless we have none.
    pub(crate) nets: Option<OverlayPrefixes>,
    /// The networks that we have and had.
    pub(crate) ours: &'a [OverlayPrefixes],
    pub(crate) options: RuleOptions,
    /// Look also for what earlier runs and versions left.
    pub(crate) first: bool,
}

/// What a look at the rules found.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Looked {
    /// How many commands were needed to put them right.
    pub(crate) changes: usize,
    /// What else on the host keeps packets of ours from being forwarded.
    pub(crate) obstacles: Vec<String>,
}

/// What is to be changed, and what else was found.
#[derive(Debug)]
pub(crate) struct Planned {
    looked: Looked,
    /// What makes it so, for `iptables-restore`; empty if nothing is to be changed.
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

    /// Which iptables it is, once it was used.
    pub(crate) fn variant(&self) -> Option<Variant> {
        self.variant
    }

    /// Numbers that are others if somebody changed the chains that are kept, found without a program; none if they cannot
    /// be found so.
    pub(crate) fn fingerprint(
        &self,
        namespace: &Namespace,
        kernel: Option<&mut Nftables>,
        options: &RuleOptions,
    ) -> Option<Vec<u64>> {
        let kept = [(&MASQUERADE, options.masquerade), (&FORWARD, options.forward)];
        let mut kept = kept.into_iter().filter(|(_, is_on)| *is_on).map(|(place, _)| place);
        if !self.variant?.is_nft {
            return kept.map(|place| legacy::fingerprint(namespace, self.family, place.table).ok()).collect();
        }
        let kernel = kernel?;
        kept.try_fold(Vec::new(), |mut numbers, place| {
            let table = NftTable { family: nft_family(self.family), name: place.table.to_owned() };
            for chain in [place.builtin, place.chain] {
                let mut hasher = DefaultHasher::new();
                hasher.write(&kernel.rules_as_bytes(&table, chain).ok()?);
                numbers.push(hasher.finish());
            }
            Some(numbers)
        })
    }

    /// Tells whether the programs are there.
    pub(crate) fn is_installed(&self) -> bool {
        programs(self.family).restore.is_installed()
    }

    /// Makes the rules as desired.
    pub(crate) async fn keep(
        &mut self,
        namespace: &Namespace,
        desired: &Desired<'_>,
    ) -> Result<Looked, IptablesError> {
        match self.try_to_keep(namespace, desired).await {
            // Somebody may have changed the table between the look and the change.
            Err(IptablesError::Program(ProgramError::Failed { .. })) => {
                self.try_to_keep(namespace, desired).await
            }
            result => result,
        }
    }

    async fn try_to_keep(
        &mut self,
        namespace: &Namespace,
        desired: &Desired<'_>,
    ) -> Result<Looked, IptablesError> {
        let Planned { looked, payload, variant } = self.plan(namespace, desired).await?;
        if !payload.is_empty() {
            let restore = programs(self.family).restore;
            restore.run(namespace, variant.restore_arguments(), &payload).await?;
        }
        Ok(looked)
    }

    /// Looks what is to be changed, and changes nothing.
    pub(crate) async fn plan(
        &mut self,
        namespace: &Namespace,
        desired: &Desired<'_>,
    ) -> Result<Planned, IptablesError> {
        let programs = programs(self.family);
        let variant = match self.variant {
            Some(variant) => variant,
            None => Variant::read(&programs.iptables.run(namespace, &["--version"], "").await?),
        };
        self.variant = Some(variant);
        let mut options = desired.options;
        options.fully_random &= variant.is_at_least_1_6_2;
        let (mut looked, mut payload) = (Looked::default(), String::new());
        for (place, is_on) in [(&MASQUERADE, options.masquerade), (&FORWARD, options.forward)] {
            let may_have_left = desired.first && self.may_exist(namespace, variant, place);
            if !(is_on || may_have_left) {
                continue;
            }
            let listing = list(namespace, &programs, place).await?;
            let rules = place.wanted(desired.nets.as_ref(), &options);
            let wanted = Wanted { place, rules, nets: desired.ours, old: desired.first && is_on };
            let changes = wanted.changes(&listing);
            if !changes.is_empty() {
                payload += &format!("*{}\n{}\nCOMMIT\n", place.table, changes.join("\n"));
            }
            looked.changes += changes.len();
            if let (true, Some(nets)) = (place.table == FORWARD.table, desired.nets) {
                looked.obstacles = obstacles::in_iptables(&listing, FORWARD.chain, &nets, self.family);
            }
        }
        Ok(Planned { looked, payload, variant })
    }

    /// Tells whether a table that we do not need may hold something of ours. To list a legacy table would create it,
    /// and with the table nat comes the tracking of all connections.
    fn may_exist(&self, namespace: &Namespace, variant: Variant, place: &Place) -> bool {
        variant.is_nft || legacy_tables(namespace, self.family).lines().any(|name| name == place.table)
    }
}

/// The names of the tables of the legacy iptables, one a line.
fn legacy_tables(namespace: &Namespace, family: IpFamily) -> String {
    let path = match family {
        IpFamily::V4 => "/proc/thread-self/net/ip_tables_names",
        IpFamily::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    namespace.run(|| std::fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
}

/// All tables of a family in the words of `iptables-save`, from each program that the host has and may use: the one that
/// changes them, and whether they are in nftables.
pub(crate) async fn saved(
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

/// The family in nftables of the tables of an iptables of the nf_tables variant.
fn nft_family(family: IpFamily) -> NftFamily {
    match family {
        IpFamily::V4 => NftFamily::Ip,
        IpFamily::V6 => NftFamily::Ip6,
    }
}

async fn list(namespace: &Namespace, programs: &Programs, place: &Place) -> Result<Listing, IptablesError> {
    let text = programs.save.run(namespace, &["-t", place.table], "").await?;
    let not_shown = || IptablesError::NotShown { program: programs.save.name, table: place.table };
    Listing::read(&text, place.table).ok_or_else(not_shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_says_what_iptables_can_do() {
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
