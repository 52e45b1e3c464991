//! What is changed in a table, tried on a model of one.
#![allow(clippy::panic, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::super::spec::words;
use super::*;

const ALL: RuleOptions = RuleOptions { masquerade: true, fully_random: true, forward: true };

fn nets(network: &str, subnet: &str) -> OverlayPrefixes {
    OverlayPrefixes::new(network.parse().expect("net"), subnet.parse().expect("net")).expect("nets")
}

fn ours() -> OverlayPrefixes {
    nets("172.30.0.0/16", "172.30.1.0/24")
}

fn wanted<'a>(place: &'a Place, nets: &'a [OverlayPrefixes], options: &RuleOptions, old: bool) -> Wanted<'a> {
    Wanted { place, rules: place.wanted(nets.first(), options), nets, old }
}

/// A table in which commands have the effect that iptables gives them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Model(Listing);

impl Model {
    fn new(place: &Place, rules: &str) -> Self {
        let chains = [place.builtin, place.chain].map(|chain| format!(":{chain} - [0:0]\n")).concat();
        let text = format!("*{}\n{chains}{rules}\nCOMMIT\n", place.table);
        Self(Listing::read(&text, place.table).expect("whole"))
    }

    /// Carries out the commands, or says which one iptables would refuse.
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
        let first = self.0.rules.iter().position(|rule| rule.chain == chain);
        let listed = |text: &str| Listed {
            chain: chain.to_owned(),
            text: text.to_owned(),
            spec: Spec::read(words(text)),
        };
        match verb {
            "-A" => self.0.rules.push(listed(text)),
            "-I" => {
                self.0.rules.insert(first.unwrap_or(self.0.rules.len()), listed(text.strip_prefix("1 ")?))
            }
            "-D" => {
                let wanted = listed(text).spec;
                let at = self.0.rules.iter().position(|rule| rule.chain == chain && rule.spec == wanted)?;
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

    /// The rules, one a line, chain by chain.
    fn text(&self) -> String {
        let line = |rule: &Listed| format!("-A {} {}", rule.chain, rule.text);
        let chains = self.0.chains.keys().flat_map(|chain| self.0.of(chain));
        chains.map(line).collect::<Vec<_>>().join("\n")
    }
}

/// What becomes of rules; that nothing is left to do then is made sure of.
fn after(wanted: &Wanted<'_>, rules: &str) -> String {
    let mut model = Model::new(wanted.place, rules);
    let changes = wanted.changes(&model.0);
    model.apply(&changes).unwrap_or_else(|command| panic!("iptables refuses {command} in {changes:#?}"));
    assert_eq!(wanted.changes(&model.0), Vec::<String>::new(), "from {rules}");
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
    assert_eq!(after(&wanted(&MASQUERADE, &[ours()], &ALL, true), ""), MASQUERADED);
    assert_eq!(after(&wanted(&FORWARD, &[ours()], &ALL, true), ""), FORWARDED);
}

#[test]
fn ipv6_gets_the_same_rules_about_its_own_addresses() {
    let nets = [nets("fd10:5::/48", "fd10:5:0:1::/64")];
    let expected = MASQUERADED.replace("172.30.1.0/24", "fd10:5:0:1::/64");
    let expected = expected.replace("172.30.0.0/16", "fd10:5::/48").replace("224.0.0.0/4", "ff00::/8");
    assert_eq!(after(&wanted(&MASQUERADE, &nets, &ALL, true), ""), expected);
}

#[test]
fn ports_are_chosen_at_random_only_if_that_is_wanted() {
    let options = RuleOptions { fully_random: false, ..ALL };
    let expected = MASQUERADED.replace(" --random-fully", "");
    assert_eq!(after(&wanted(&MASQUERADE, &[ours()], &options, true), MASQUERADED), expected);
}

/// The shapes of earlier releases, for 172.30.1.0/24 of 172.30.0.0/16.
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
fn of_every_shape_that_upstream_ever_had_only_the_newest_stays() {
    for (release, rules) in shapes() {
        assert_eq!(after(&wanted(&MASQUERADE, &[ours()], &ALL, true), &rules), MASQUERADED, "{release}");
        // And of an earlier network, which another run had, too.
        let nets = [nets("10.9.0.0/16", "10.9.3.0/24"), ours()];
        let now = after(&wanted(&MASQUERADE, &nets, &ALL, true), &rules);
        assert!(!now.contains("172.30."), "{release}: {now}");
    }
    let forward = "-A FORWARD -s 172.30.0.0/16 -j ACCEPT\n-A FORWARD -d 172.30.0.0/16 -j ACCEPT";
    assert_eq!(after(&wanted(&FORWARD, &[ours()], &ALL, true), forward), FORWARDED);
    let v016 = forward.replace(" -j ", " -m comment --comment \"flanneld forward\" -j ");
    assert_eq!(after(&wanted(&FORWARD, &[ours()], &ALL, true), &v016), FORWARDED);
}

#[test]
fn rules_of_the_operator_stay_also_where_they_look_like_those_of_a_first_start() {
    let operators = "-A POSTROUTING -j RETURN
-A POSTROUTING ! -d 224.0.0.0/4 -j MASQUERADE --random-fully
-A POSTROUTING -s 172.30.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 10.9.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE";
    let now = after(&wanted(&MASQUERADE, &[ours()], &ALL, true), operators);
    assert_eq!(now, format!("{}\n{operators}\n{}", lines(MASQUERADED, 0..6), lines(MASQUERADED, 6..7)));
}

#[test]
fn what_looks_like_v011_is_removed_at_the_start_only_because_a_person_may_write_it_later() {
    let rule = "-A FORWARD -s 172.30.0.0/16 -j ACCEPT";
    let now = after(&wanted(&FORWARD, &[ours()], &ALL, false), rule);
    assert!(now.contains(rule), "{now}");
}

#[test]
fn another_networks_rules_in_our_chain_stay_and_neither_daemon_undoes_the_others_work() {
    let other = nets("10.9.0.0/16", "10.9.3.0/24");
    let (a, b) = ([ours()], [other]);
    let (a, b) = (wanted(&MASQUERADE, &a, &ALL, true), wanted(&MASQUERADE, &b, &ALL, true));
    let both = after(&b, &after(&a, ""));
    assert_eq!(a.changes(&Model::new(&MASQUERADE, &both).0), Vec::<String>::new());
    let none = RuleOptions { masquerade: false, ..ALL };
    let gone = after(&wanted(&MASQUERADE, &[other], &none, true), &both);
    assert_eq!(gone, MASQUERADED, "one of them ends, the other's rules stay");
}

#[test]
fn rules_that_are_no_longer_wanted_go_with_their_chain() {
    let none = RuleOptions { masquerade: false, forward: false, ..ALL };
    assert_eq!(after(&wanted(&MASQUERADE, &[ours()], &none, true), MASQUERADED), "");
    let mut model = Model::new(&MASQUERADE, MASQUERADED);
    model.apply(&wanted(&MASQUERADE, &[ours()], &none, true).changes(&model.0)).expect("accepted");
    assert!(!model.0.chains.contains_key("FLANNEL-POSTRTG"));
    let foreign = "-A FLANNEL-POSTRTG -s 192.0.2.0/24 -j RETURN";
    let jump = lines(MASQUERADED, 6..7);
    let kept = format!("{foreign}\n{jump}");
    assert_eq!(after(&wanted(&MASQUERADE, &[ours()], &none, true), &kept), kept);
}

#[test]
fn an_earlier_subnet_of_the_same_network_leaves_nothing() {
    let earlier = nets("172.30.0.0/16", "172.30.9.0/24");
    let options = &ALL;
    let before = after(&wanted(&MASQUERADE, &[earlier], options, true), "");
    assert_eq!(after(&wanted(&MASQUERADE, &[ours()], options, true), &before), MASQUERADED);
}

fn lines(text: &str, range: std::ops::Range<usize>) -> String {
    text.lines().collect::<Vec<_>>()[range].join("\n")
}

/// Rules of all kinds: ours, old ones, and an operator's.
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
    fn from_any_state_one_transaction_leads_to_ours_and_nobody_elses_rule_is_touched(rules in any_rules()) {
        let foreign = |text: &str| -> Vec<String> {
            let is_foreign = |line: &&str| line.contains("192.0.2.") || line.contains("KUBE-");
            text.lines().filter(is_foreign).map(str::to_owned).collect()
        };
        let before = Model::new(&MASQUERADE, &rules.join("\n")).text();
        let now = after(&wanted(&MASQUERADE, &[ours()], &ALL, true), &rules.join("\n"));
        prop_assert_eq!(foreign(&now), foreign(&before));
        let ours: Vec<&str> = now.lines().filter(|line| !foreign(&now).contains(&(*line).to_owned())).collect();
        prop_assert_eq!(ours.join("\n"), MASQUERADED);
    }
}
