//! Whether containers may be started on this host, and what speaks against it. Pure.

use crate::status::AgentStatus;

/// Answers `/readyz`: upstream's words in the first line, then everything that is not as it should be, by name. What is
/// no reason against this host is told as well, behind what is.
pub(super) fn readiness(report: &AgentStatus) -> (bool, String) {
    let network = &report.network;
    let is_ready = network.is_in_order();
    let mut body = if is_ready { "flanneld is ready" } else { "flanneld is not ready yet" }.to_owned();
    let (against, beside): (Vec<_>, Vec<_>) =
        network.conditions.iter().partition(|condition| condition.name.is_against_readiness());
    for condition in against.into_iter().chain(beside) {
        body.push_str(&format!("\n{}: {}", condition.name, condition.detail.replace(['\n', '\r'], " ")));
    }
    (is_ready, body)
}

#[cfg(test)]
mod tests {
    use flannel_core::{Condition, ConditionName, NetworkStatus};

    use super::*;

    fn report(ready: bool, conditions: &[(ConditionName, &str)]) -> AgentStatus {
        let mut network = NetworkStatus::default();
        network.ready = ready;
        network.conditions = conditions.iter().map(|(name, why)| Condition::new(*name, *why)).collect();
        AgentStatus { network, ..AgentStatus::default() }
    }

    #[test]
    fn a_host_where_all_is_well_says_what_upstream_says() {
        assert_eq!(readiness(&report(true, &[])), (true, "flanneld is ready".to_owned()));
    }

    #[test]
    fn a_lost_registry_is_named_and_no_reason_and_a_failed_route_is_one() {
        let silent = (ConditionName::RegistryUnavailable, "for 4 seconds: refused");
        let failed = (ConditionName::ObjectsFailed, "route 10.5.3.0/24: no\nsuch device");
        assert_eq!(
            readiness(&report(true, &[silent])),
            (true, "flanneld is ready\nregistry_unavailable: for 4 seconds: refused".to_owned())
        );
        let (is_ready, body) = readiness(&report(true, &[silent, failed]));
        assert!(!is_ready);
        assert_eq!(
            body,
            "flanneld is not ready yet\nobjects_failed: route 10.5.3.0/24: no such device\n\
             registry_unavailable: for 4 seconds: refused"
        );
    }
}
