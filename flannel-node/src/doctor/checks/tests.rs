//! Faults that a lab cannot create.

use super::examine;
use crate::doctor::facts::Facts;
use crate::doctor::facts::tests::healthy;

fn ids(facts: &Facts) -> Vec<&'static str> {
    examine(facts).iter().map(|finding| finding.id).collect()
}

#[test]
fn of_a_host_with_nothing_wrong_nothing_is_said() {
    assert_eq!(ids(&healthy()), [""; 0]);
}

#[test]
fn a_kernel_without_vxlan_is_a_fault_only_where_the_backend_needs_it() {
    let mut facts = healthy();
    facts.kernel.has_vxlan = Some(false);
    assert_eq!(ids(&facts), ["kernel-vxlan"]);
    facts.kernel.has_vxlan = None;
    assert_eq!(ids(&facts), [""; 0], "it could not be tried");
}

#[test]
fn a_kernel_without_nftables_is_a_fault_only_where_the_rules_are_there() {
    let mut facts = healthy();
    facts.kernel.has_nftables = false;
    assert_eq!(ids(&facts), [""; 0]);
    if let Some(network) = &mut facts.network {
        network.config.enable_nftables = true;
    }
    assert_eq!(ids(&facts), ["kernel-nftables"]);
    facts.may_look = false;
    assert_eq!(ids(&facts), ["doctor-not-root"], "who may not ask gets no answer either");
}
