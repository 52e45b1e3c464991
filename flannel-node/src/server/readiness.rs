//! The readiness of a host for containers.

use crate::status::AgentStatus;

/// Returns whether the host is ready, and the body of `/readyz`: upstream's words in the first line, then a line for each
/// condition, first those that make the host unready.
pub(super) fn readiness(report: &AgentStatus) -> (bool, String) {
    let network = &report.network;
    let is_ready = network.is_in_order();
    let mut body = if is_ready { "flanneld is ready" } else { "flanneld is not ready yet" }.to_owned();
    let (faults, others): (Vec<_>, Vec<_>) =
        network.conditions.iter().partition(|condition| condition.name.is_against_readiness());
    for condition in faults.into_iter().chain(others) {
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
    fn a_host_without_faults_responds_like_upstream() {
        assert_eq!(readiness(&report(true, &[])), (true, "flanneld is ready".to_owned()));
    }

    #[test]
    fn a_failed_route_makes_a_host_unready_and_an_unavailable_registry_does_not() {
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
