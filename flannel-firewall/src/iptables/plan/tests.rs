//! The changes to a table, applied to a model of iptables.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::super::spec::words;
use super::*;

const ALL: RuleOptions = RuleOptions { masquerade: true, fully_random: true, forward: true };

fn nets(network: &str, subnet: &str) -> OverlayPrefixes {
    OverlayPrefixes::new(network.parse().expect("net"), subnet.parse().expect("net")).expect("nets")
}

fn own() -> OverlayPrefixes {
    nets("172.30.0.0/16", "172.30.1.0/24")
}

fn desired<'a>(
    own_chain: &'a OwnChain,
    nets: &'a [OverlayPrefixes],
    options: &RuleOptions,
    old: bool,
) -> DesiredTable<'a> {
    DesiredTable { own_chain, rules: own_chain.rules(nets.first(), options), owned: nets, v011: old }
}

/// A table to which commands apply as in iptables.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Model(TableListing);

impl Model {
    fn new(own_chain: &OwnChain, rules: &str) -> Self {
        let chains = [own_chain.builtin, own_chain.chain].map(|chain| format!(":{chain} - [0:0]\n")).concat();
        let text = format!("*{}\n{chains}{rules}\nCOMMIT\n", own_chain.table);
        Self(TableListing::read(&text, own_chain.table).expect("whole"))
    }

    /// Applies the commands; returns the one that iptables would refuse.
    fn apply(&mut self, commands: &[String]) -> Result<(), String> {
        commands.iter().try_for_each(|command| self.apply_one(command).ok_or_else(|| command.clone()))
    }

    fn apply_one(&mut self, command: &str) -> Option<()> {
        if let Some(chain) = command.strip_prefix(':') {
            let name = chain.split(' ').next()?.to_owned();
            return self.0.chains.insert(name, None).is_none().then_some(());
        }
        let (verb, rest) = command.split_once(' ')?;
        let (chain, text) = rest.split_once(' ').unwrap_or((rest, ""));
        self.0.chains.get(chain)?;
        let listed = |text: &str| ListedRule {
            chain: chain.to_owned(),
            text: text.to_owned(),
            spec: RuleSpec::read(words(text)),
        };
        match verb {
            "-A" => self.0.rules.push(listed(text)),
            "-I" => {
                let (position, text) = text.split_once(' ')?;
                let index = position.parse::<usize>().ok()?.checked_sub(1)?;
                let mut of_chain = (0..self.0.rules.len()).filter(|at| self.0.rules[*at].chain == chain);
                let at = of_chain.nth(index).unwrap_or(self.0.rules.len());
                self.0.rules.insert(at, listed(text));
            }
            "-D" => {
                let desired = listed(text).spec;
                let at = self.0.rules.iter().position(|rule| rule.chain == chain && rule.spec == desired)?;
                self.0.rules.remove(at);
            }
            "-F" => self.0.rules.retain(|rule| rule.chain != chain),
            "-X" => {
                let is_used =
                    self.0.rules.iter().any(|rule| rule.chain == chain || rule.spec.target == chain);
                self.0.chains.remove(chain).filter(|_| !is_used)?;
            }
            _ => return None,
        }
        Some(())
    }

    /// Returns the rules, one per line, chain by chain.
    fn text(&self) -> String {
        let line = |rule: &ListedRule| format!("-A {} {}", rule.chain, rule.text);
        let chains = self.0.chains.keys().flat_map(|chain| self.0.of(chain));
        chains.map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Applies the changes to rules and returns the result, to which no change is left.
fn after(desired: &DesiredTable<'_>, rules: &str) -> String {
    let mut model = Model::new(desired.own_chain, rules);
    let changes = desired.changes(&model.0);
    model.apply(&changes).unwrap_or_else(|command| panic!("iptables refuses {command} in {changes:#?}"));
    assert_eq!(desired.changes(&model.0), Vec::<String>::new(), "from {rules}");
    model.text()
}

const MASQUERADED: &str = r#"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.30.1.0/24 -d 172.30.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.30.0.0/16 -d 172.30.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 172.30.0.0/16 -d 172.30.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.30.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.30.0.0/16 -d 172.30.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;

const FORWARDED: &str = r#"-A FLANNEL-FWD -s 172.30.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 172.30.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#;

#[test]
fn an_empty_table_gets_the_rules_of_upstream() {
    assert_eq!(after(&desired(&MASQUERADE, &[own()], &ALL, true), ""), MASQUERADED);
    assert_eq!(after(&desired(&FORWARD, &[own()], &ALL, true), ""), FORWARDED);
}

#[test]
fn ipv6_rules_are_the_same_for_ipv6_prefixes() {
    let nets = [nets("fd10:5::/48", "fd10:5:0:1::/64")];
    let expected = MASQUERADED.replace("172.30.1.0/24", "fd10:5:0:1::/64");
    let expected = expected.replace("172.30.0.0/16", "fd10:5::/48").replace("224.0.0.0/4", "ff00::/8");
    assert_eq!(after(&desired(&MASQUERADE, &nets, &ALL, true), ""), expected);
}

#[test]
fn random_ports_are_optional() {
    let options = RuleOptions { fully_random: false, ..ALL };
    let expected = MASQUERADED.replace(" --random-fully", "");
    assert_eq!(after(&desired(&MASQUERADE, &[own()], &options, true), MASQUERADED), expected);
}

/// The rules of earlier releases, for 172.30.1.0/24 of 172.30.0.0/16.
fn shapes() -> [(&'static str, String); 6] {
    let v011 = "-A POSTROUTING -s 172.30.0.0/16 -d 172.30.0.0/16 -j RETURN
-A POSTROUTING -s 172.30.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A POSTROUTING ! -s 172.30.0.0/16 -d 172.30.1.0/24 -j RETURN
-A POSTROUTING ! -s 172.30.0.0/16 -d 172.30.0.0/16 -j MASQUERADE --random-fully";
    let comment = |text: &str| text.replace(" -j ", " -m comment --comment \"flanneld masq\" -j ");
    let v016 = comment(v011);
    let in_chain = v016.replace("-A POSTROUTING", "-A FLANNEL-POSTRTG");
    let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
    let mark =
        "-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN";
    [
        ("v0.10", v011.replace(" --random-fully", "")),
        ("v0.11", v011.to_owned()),
        ("v0.16.2", v016.replacen("flanneld masq\" -j MASQ", "flannel masq\" -j MASQ", 1)),
        ("v0.19", v016),
        ("v0.20.0", format!("{jump}\n{in_chain}")),
        ("v0.20.2", format!("{jump}\n{mark}\n{in_chain}")),
    ]
}

#[test]
fn rules_of_every_earlier_release_are_replaced() {
    for (release, rules) in shapes() {
        assert_eq!(after(&desired(&MASQUERADE, &[own()], &ALL, true), &rules), MASQUERADED, "{release}");
        // The same for a network of an earlier run.
        let nets = [nets("10.9.0.0/16", "10.9.3.0/24"), own()];
        let now = after(&desired(&MASQUERADE, &nets, &ALL, true), &rules);
        assert!(!now.contains("172.30."), "{release}: {now}");
    }
    let forward = "-A FORWARD -s 172.30.0.0/16 -j ACCEPT\n-A FORWARD -d 172.30.0.0/16 -j ACCEPT";
    assert_eq!(after(&desired(&FORWARD, &[own()], &ALL, true), forward), FORWARDED);
    let v016 = forward.replace(" -j ", " -m comment --comment \"flanneld forward\" -j ");
    assert_eq!(after(&desired(&FORWARD, &[own()], &ALL, true), &v016), FORWARDED);
}

#[test]
fn rules_of_the_operator_stay_even_if_they_resemble_those_of_flannel() {
    let operators = "-A POSTROUTING -j RETURN
-A POSTROUTING ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A POSTROUTING -s 172.30.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.9.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE";
    let now = after(&desired(&MASQUERADE, &[own()], &ALL, true), operators);
    assert_eq!(now, format!("{}\n{operators}\n{}", lines(MASQUERADED, 0..6), lines(MASQUERADED, 6..7)));
}

#[test]
fn rules_that_resemble_v011_are_removed_only_at_the_start() {
    let rule = "-A FORWARD -s 172.30.0.0/16 -j ACCEPT";
    let now = after(&desired(&FORWARD, &[own()], &ALL, false), rule);
    assert!(now.contains(rule), "{now}");
}

#[test]
fn two_daemons_share_the_chain_without_undoing_each_other() {
    let other = nets("10.9.0.0/16", "10.9.3.0/24");
    let (a, b) = ([own()], [other]);
    let (a, b) = (desired(&MASQUERADE, &a, &ALL, true), desired(&MASQUERADE, &b, &ALL, true));
    let both = after(&b, &after(&a, ""));
    assert_eq!(a.changes(&Model::new(&MASQUERADE, &both).0), Vec::<String>::new());
    let none = RuleOptions { masquerade: false, ..ALL };
    let gone = after(&desired(&MASQUERADE, &[other], &none, true), &both);
    assert_eq!(gone, MASQUERADED, "one daemon ends and the other's rules stay");
}

#[test]
fn disabled_rules_are_removed_with_their_chain() {
    let none = RuleOptions { masquerade: false, forward: false, ..ALL };
    assert_eq!(after(&desired(&MASQUERADE, &[own()], &none, true), MASQUERADED), "");
    let mut model = Model::new(&MASQUERADE, MASQUERADED);
    model.apply(&desired(&MASQUERADE, &[own()], &none, true).changes(&model.0)).expect("accepted");
    assert!(!model.0.chains.contains_key("FLANNEL-POSTRTG"));
    let foreign = "-A FLANNEL-POSTRTG -s 192.0.2.0/24 -j RETURN";
    let jump = lines(MASQUERADED, 6..7);
    let kept = format!("{foreign}\n{jump}");
    assert_eq!(after(&desired(&MASQUERADE, &[own()], &none, true), &kept), kept);
}

#[test]
fn rules_about_an_earlier_subnet_are_removed() {
    let earlier = nets("172.30.0.0/16", "172.30.9.0/24");
    let options = &ALL;
    let before = after(&desired(&MASQUERADE, &[earlier], options, true), "");
    assert_eq!(after(&desired(&MASQUERADE, &[own()], options, true), &before), MASQUERADED);
}

/// Applies the forward rules to a table with the chain `DOCKER-USER`, and returns the rules of that chain.
fn docker_user(options: &RuleOptions, rules: &str) -> Vec<String> {
    let mut model = Model::new(&FORWARD, &format!(":DOCKER-USER - [0:0]\n{rules}"));
    let nets = [own()];
    let desired = desired(&FORWARD, &nets, options, true);
    let changes = desired.changes(&model.0);
    model.apply(&changes).unwrap_or_else(|command| panic!("iptables refuses {command} in {changes:#?}"));
    assert_eq!(desired.changes(&model.0), Vec::<String>::new(), "from {rules}");
    model.0.of("DOCKER-USER").map(|rule| rule.text.clone()).collect()
}

#[test]
fn docker_user_calls_the_chain_after_rules_of_the_operator_and_before_it_returns() {
    let jump = "-m comment --comment \"flanneld forward\" -j FLANNEL-FWD";
    let none = RuleOptions { masquerade: false, forward: false, ..ALL };
    let drop = "-s 192.0.2.0/24 -j DROP";
    for (before, after) in [
        (&[][..], &[jump][..]),
        (&["-j RETURN"], &[jump, "-j RETURN"]),
        (&[drop, "-j RETURN"], &[drop, jump, "-j RETURN"]),
        (&[drop, "-j RETURN", jump], &[drop, jump, "-j RETURN"]),
        (&[jump, jump, drop], &[drop, jump]),
        (&[jump, drop], &[jump, drop]),
    ] {
        let rules: String = before.iter().map(|rule| format!("-A DOCKER-USER {rule}\n")).collect();
        assert_eq!(docker_user(&ALL, &rules), after, "{before:?}");
        let others: Vec<_> = before.iter().copied().filter(|rule| *rule != jump).collect();
        assert_eq!(docker_user(&none, &rules), others, "{before:?}");
    }
}

fn lines(text: &str, range: std::ops::Range<usize>) -> String {
    text.lines().collect::<Vec<_>>()[range].join("\n")
}

/// Rules of all kinds: current, old, and an operator's.
fn any_rules() -> impl Strategy<Value = Vec<String>> {
    let foreign = [
        "-A POSTROUTING -s 192.0.2.0/24 -j RETURN",
        "-A FLANNEL-POSTRTG -s 192.0.2.0/24 -j RETURN",
        "-A POSTROUTING -m comment --comment \"kubernetes\" -j KUBE-POSTROUTING",
    ];
    let shapes = shapes().map(|(_, rules)| rules).join("\n");
    let pool: Vec<String> =
        MASQUERADED.lines().chain(shapes.lines()).chain(foreign).map(str::to_owned).collect();
    proptest::collection::vec(proptest::sample::select(pool), 0..30)
}

proptest! {
    #[test]
    fn one_transaction_converges_from_any_state_and_keeps_foreign_rules(rules in any_rules()) {
        let foreign = |text: &str| -> Vec<String> {
            let is_foreign = |line: &&str| line.contains("192.0.2.") || line.contains("KUBE-");
            text.lines().filter(is_foreign).map(str::to_owned).collect()
        };
        let before = Model::new(&MASQUERADE, &rules.join("\n")).text();
        let now = after(&desired(&MASQUERADE, &[own()], &ALL, true), &rules.join("\n"));
        prop_assert_eq!(foreign(&now), foreign(&before));
        let own: Vec<&str> = now.lines().filter(|line| !foreign(&now).contains(&(*line).to_owned())).collect();
        prop_assert_eq!(own.join("\n"), MASQUERADED);
    }
}
