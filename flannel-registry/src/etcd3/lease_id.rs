//! Ids of etcd leases with a meaning. Pure.

/// The etcd lease id for "no lease".
pub(super) const NO_LEASE: i64 = 0;

/// The upper bits of the lease ids of releases: `flr` in ASCII. Ids chosen by etcd begin with part of a member id.
const MARK: i64 = 0x0066_6c72 << 40;
const MARK_MASK: i64 = !0 << 40;

/// Reports whether a lease id marks a release.
pub(super) fn is_release(id: i64) -> bool {
    id & MARK_MASK == MARK
}

/// Chooses a lease id for a release.
pub(super) fn release_id() -> i64 {
    MARK | fastrand::i64(..) & !MARK_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_ids_are_recognised_and_others_are_not() {
        let id = release_id();
        assert!(id > 0 && is_release(id), "{id:x}");
        for id in [NO_LEASE, 0x694d_90a1_2345_6789, i64::MAX, -1, MARK - 1] {
            assert!(!is_release(id), "{id:x}");
        }
    }
}
