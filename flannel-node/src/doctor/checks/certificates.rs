//! The dates of the certificates for etcd.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::doctor::facts::{Certificate, Facts};
use crate::doctor::finding::{Cure, Fault, Finding, quoted};

pub(super) const EXPIRED: Fault = Fault::error("certificate-expired", "etcd and this host do not accept it");
pub(super) const NOT_YET_VALID: Fault = Fault::error(
    "certificate-not-yet-valid",
    "etcd and this host do not accept it; the clock of this host may be wrong",
);
pub(super) const EXPIRES_SOON: Fault = Fault::warning(
    "certificate-expires-soon",
    "etcd and this host will not accept it then; the daemon reads a new file without a restart",
);

/// Replacing a certificate by hand takes days; short-lived ones are replaced by programs.
const SOON: Duration = Duration::from_secs(14 * 86_400);
/// The last fraction of a short lifetime, as one in this number, in which a certificate should have been replaced.
const LAST_PART: u32 = 5;

pub(in crate::doctor) fn dates(facts: &Facts) -> Vec<Finding> {
    facts.registry.certificates.iter().filter_map(|certificate| judge(facts, certificate)).collect()
}

fn judge(facts: &Facts, certificate: &Certificate) -> Option<Finding> {
    let Certificate { path, key, subject, not_before, not_after } = certificate;
    let life = not_after.duration_since(*not_before).unwrap_or_default();
    let soon = SOON.min(life / LAST_PART);
    let (fault, how) = if facts.now > *not_after {
        (&EXPIRED, format!("expired on {}", date(*not_after)))
    } else if facts.now < *not_before {
        (&NOT_YET_VALID, format!("is not valid before {}", date(*not_before)))
    } else if facts.now + soon > *not_after {
        (&EXPIRES_SOON, format!("expires on {}", date(*not_after)))
    } else {
        return None;
    };
    let what = format!("the certificate {subject} in {} {how}", path.display());
    let replace = |file: &std::path::Path, new: &str| format!("cp {new} {}", quoted(&file.to_string_lossy()));
    let mut cure = Cure::run([replace(path, "NEW-CERTIFICATE.pem")]);
    cure.commands.extend(key.as_deref().map(|key| replace(key, "NEW-KEY.pem")));
    Some(fault.found(what, cure))
}

fn date(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(|_| "a date far away".to_owned(), |time| format!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::tests::healthy;

    #[test]
    fn soon_is_two_weeks_or_the_last_part_of_a_short_life() {
        let found = |age_days: u64, life_days: u64| {
            let mut facts = healthy();
            let days = |n: u64| Duration::from_secs(n * 86_400);
            let not_before = facts.now - days(age_days);
            let not_after = not_before + days(life_days);
            let (path, subject) = ("/client.pem".into(), "CN=host-1".to_owned());
            let certificate = Certificate { path, key: None, subject, not_before, not_after };
            facts.registry.certificates = vec![certificate];
            dates_ids(&facts)
        };
        assert_eq!(found(300, 365), [""; 0]);
        assert_eq!(found(352, 365), ["certificate-expires-soon"]);
        assert_eq!(found(366, 365), ["certificate-expired"]);
        assert_eq!(found(3, 7), [""; 0]);
        assert_eq!(found(6, 7), ["certificate-expires-soon"]);
    }

    fn dates_ids(facts: &Facts) -> Vec<&'static str> {
        dates(facts).iter().map(|finding| finding.id).collect()
    }
}
