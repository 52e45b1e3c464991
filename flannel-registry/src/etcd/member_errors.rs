//! The errors of the members that were asked during one call.

use std::collections::BTreeMap;
use std::fmt;

use flannel_core::BoxError;

/// The errors of several members, by endpoint. A refusal of one member is not that of the cluster: a learner, a member
/// with an outdated auth store or one without space refuses what another member accepts.
#[derive(Debug, Default)]
pub(crate) struct MemberErrors {
    refusals: BTreeMap<usize, String>,
    failures: BTreeMap<usize, String>,
}

impl MemberErrors {
    /// Adds the answer of a member that refused the call.
    pub(crate) fn refused(&mut self, member: usize, reason: &BoxError) {
        self.refusals.insert(member, reason.to_string());
    }

    /// Adds the error of a member that did not answer.
    pub(crate) fn failed(&mut self, member: usize, reason: &BoxError) {
        self.failures.insert(member, reason.to_string());
    }

    /// Reports whether every member refused.
    pub(crate) fn all_refused(&self) -> bool {
        self.failures.is_empty()
    }

    /// Returns the answers of the members that refused, if any did.
    pub(crate) fn refusals(&self) -> Option<String> {
        let refusals: Vec<_> = self.refusals.values().map(String::as_str).collect();
        (!refusals.is_empty()).then(|| refusals.join("; "))
    }
}

/// Returns what etcd itself said, if an error contains that.
pub(crate) fn refusals(reason: &BoxError) -> Option<String> {
    reason.downcast_ref::<MemberErrors>()?.refusals()
}

impl fmt::Display for MemberErrors {
    /// Formats refusals first, because they say more than a missing answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, reason) in self.refusals.values().chain(self.failures.values()).enumerate() {
            f.write_str(if n == 0 { "" } else { "; " })?;
            f.write_str(reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for MemberErrors {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_first_and_in_the_order_of_the_endpoints() {
        let mut errors = MemberErrors::default();
        errors.failed(0, &"http://a: no answer".into());
        assert_eq!(errors.refusals(), None);
        errors.refused(2, &"http://c: learner".into());
        errors.refused(1, &"http://b: no space".into());
        assert_eq!(errors.to_string(), "http://b: no space; http://c: learner; http://a: no answer");
        assert!(!errors.all_refused());
        assert_eq!(refusals(&errors.into()).as_deref(), Some("http://b: no space; http://c: learner"));
    }
}
