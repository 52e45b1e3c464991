//! Finds what a reconcile pass would change, without changing it.

use flannel_netlink::{Namespace, Nftables};

use crate::iptables::{self, DesiredRules, Iptables};
use crate::nftables::{self, NftablesError};
use crate::options::{FirewallMode, FirewallNetwork};
use crate::report::FirewallError;
use crate::rules::{self, OverlayPrefixes, RuleOptions};

/// Rules that are missing or differ.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct MissingRules {
    /// The command that writes them.
    pub program: String,
    /// The standard input of the command.
    pub input: String,
}

/// Finds masquerade and forward rules that are missing or differ.
///
/// In nftables a table counts as correct if each of its chains has the expected number of rules.
///
/// # Errors
///
/// [`FirewallError`] if the rules cannot be read.
pub async fn missing_rules(
    namespace: &Namespace,
    rules: &RuleOptions,
    network: &FirewallNetwork,
) -> Result<Vec<MissingRules>, FirewallError> {
    let mut missing = Vec::new();
    for nets in &network.prefixes {
        missing.extend(match network.mode {
            FirewallMode::Iptables => in_iptables(namespace, rules, nets).await?,
            FirewallMode::Nftables => in_nftables(namespace, rules, nets)?,
        });
    }
    Ok(missing)
}

async fn in_iptables(
    namespace: &Namespace,
    options: &RuleOptions,
    nets: &OverlayPrefixes,
) -> Result<Option<MissingRules>, FirewallError> {
    let family = nets.family();
    if !(options.masquerade || options.forward) {
        return Ok(None);
    }
    let desired = DesiredRules { nets: Some(*nets), owned: &[*nets], options: *options, leftovers: false };
    let plan = Iptables::new(family).plan(namespace, &desired).await;
    let plan = plan.map_err(|error| FirewallError::Iptables(family, error))?;
    let program = [&[iptables::restore(family)], plan.variant.restore_arguments()].concat().join(" ");
    Ok((!plan.payload.is_empty()).then_some(MissingRules { program, input: plan.payload }))
}

fn in_nftables(
    namespace: &Namespace,
    options: &RuleOptions,
    nets: &OverlayPrefixes,
) -> Result<Option<MissingRules>, FirewallError> {
    let Some(script) = nftables::rules_script(nets, options) else {
        return Ok(None);
    };
    let table = nftables::rules_table(nets.family());
    let failed = |error| FirewallError::Nftables(table.clone(), error);
    let is_whole = || -> Result<bool, NftablesError> {
        let mut kernel = Nftables::open_in(namespace)?;
        for (chain, rules) in [
            (nftables::MASQUERADE, rules::masquerade(nets, options)),
            (nftables::FORWARD, rules::forward(nets, options)),
        ] {
            let present = kernel.rules(&table, chain)?;
            if present.len() != rules.len() {
                return Ok(false);
            }
        }
        Ok(true)
    };
    if is_whole().map_err(failed)? {
        return Ok(None);
    }
    let input = format!("add table {table}\ndelete table {table}\n{script}");
    Ok(Some(MissingRules { program: "nft -f -".to_owned(), input }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_testing::{CAP_SYS_ADMIN, with_capabilities};
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn missing_rules_come_with_the_command_that_writes_them() {
        let (namespace, rules) = (namespace(), rules());
        for mode in [FirewallMode::Iptables, FirewallMode::Nftables] {
            let network = network(mode);
            let missing =
                || runtime().block_on(missing_rules(&namespace, &rules, &network)).expect("readable").pop();
            let found = missing().expect("no rule is there");
            apply(&namespace, &found);
            assert_eq!(missing(), None, "{found:?}");
            let spoil = match mode {
                FirewallMode::Iptables => "iptables -D FLANNEL-FWD 2",
                FirewallMode::Nftables => "nft flush chain ip flannel-ipv4 forward",
            };
            apply(&namespace, &MissingRules { program: spoil.to_owned(), input: String::new() });
            let found = missing().expect("one is missing");
            apply(&namespace, &found);
            assert_eq!(missing(), None, "{found:?}");
        }
    }

    #[test]
    fn unreadable_rules_are_not_reported_as_missing() {
        let (namespace, rules, network) = (namespace(), rules(), network(FirewallMode::Nftables));
        let look = || runtime().block_on(missing_rules(&namespace, &rules, &network));
        let looked = with_capabilities(&namespace, &[CAP_SYS_ADMIN], look).expect("namespace");
        assert!(matches!(looked, Err(FirewallError::Nftables(..))), "{looked:?}");
    }

    fn namespace() -> Namespace {
        Namespace::create().expect("these tests create network namespaces: run them as root")
    }

    fn network(mode: FirewallMode) -> FirewallNetwork {
        let net = |net: &str| net.parse().expect("net");
        let prefixes = OverlayPrefixes::new(net("10.5.0.0/16"), net("10.5.1.0/24")).expect("prefixes");
        FirewallNetwork { mode, prefixes: vec![prefixes], ..FirewallNetwork::default() }
    }

    fn rules() -> RuleOptions {
        RuleOptions { masquerade: true, fully_random: true, forward: true }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
    }

    fn apply(namespace: &Namespace, rules: &MissingRules) {
        let mut words = rules.program.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).stdin(Stdio::piped());
        let mut child = namespace.run(move || command.spawn()).expect("namespace").expect("program");
        let mut input = child.stdin.take().expect("piped");
        input.write_all(rules.input.as_bytes()).expect("written");
        drop(input);
        assert!(child.wait().expect("ended").success(), "{rules:?}");
    }
}
