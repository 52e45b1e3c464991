//! A table as `iptables-save` prints it. Pure.

use std::collections::BTreeMap;

use super::spec::{RuleSpec, words};

/// The contents of a table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct TableListing {
    /// The chains, with the policy of built-in ones.
    pub(crate) chains: BTreeMap<String, Option<String>>,
    /// The rules of all chains; those of one chain are in order.
    pub(crate) rules: Vec<ListedRule>,
}

/// A rule in a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ListedRule {
    pub(crate) chain: String,
    /// The words after the chain, unchanged; `-D` with this text deletes the rule.
    pub(crate) text: String,
    pub(crate) spec: RuleSpec,
}

impl TableListing {
    /// Reads the table called `name`; `None` if the text does not contain it, or only a part.
    ///
    /// `iptables-save` prints a comment and succeeds when it cannot show a table.
    pub(crate) fn read(text: &str, name: &str) -> Option<Self> {
        let mut listing = Self::default();
        let start = format!("*{name}");
        let mut lines = text.lines().map(str::trim).skip_while(|line| *line != start).skip(1);
        for line in &mut lines {
            if line == "COMMIT" {
                return Some(listing);
            }
            listing.take(line);
        }
        None
    }

    /// Reads all complete tables, with their names.
    pub(crate) fn read_all(text: &str) -> Vec<(String, Self)> {
        let names = text.lines().filter_map(|line| line.trim().strip_prefix('*'));
        names.filter_map(|name| Some((name.to_owned(), Self::read(text, name)?))).collect()
    }

    fn take(&mut self, line: &str) {
        if let Some(chain) = line.strip_prefix(':') {
            let mut parts = chain.split_whitespace();
            let name = parts.next().unwrap_or_default().to_owned();
            let policy = parts.next().filter(|policy| *policy != "-").map(str::to_owned);
            self.chains.insert(name, policy);
        } else if let Some((chain, text)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
            let (chain, text) = (chain.to_owned(), text.to_owned());
            self.rules.push(ListedRule { chain, spec: RuleSpec::read(words(&text)), text });
        }
    }

    /// Returns the rules of one chain, in order.
    pub(crate) fn of(&self, chain: &str) -> impl Iterator<Item = &ListedRule> {
        self.rules.iter().filter(move |rule| rule.chain == chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_only_if_it_is_complete() {
        let text = "# Generated\n*filter\n:FORWARD DROP [3:4]\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\nCOMMIT\n# Completed\n";
        let listing = TableListing::read(text, "filter").expect("whole");
        assert_eq!(listing.chains["FORWARD"].as_deref(), Some("DROP"));
        assert_eq!(listing.chains["FLANNEL-FWD"], None);
        assert_eq!(
            listing.of("FORWARD").map(|rule| rule.text.as_str()).collect::<Vec<_>>(),
            ["-j FLANNEL-FWD"]
        );
        assert_eq!(TableListing::read(text, "nat"), None);
        assert_eq!(TableListing::read(text.split_once("COMMIT").expect("end").0, "filter"), None);
        assert_eq!(TableListing::read("# Table `filter' is incompatible, use 'nft' tool.\n", "filter"), None);
    }
}
