//! Checksum offload of the tunnel device. Pure.
//!
//! Kernels before 5.7 may send a wrong outer checksum when an encapsulated packet is masqueraded; the receiver drops it,
//! and connections to other hosts stall for seconds (flannel-io/flannel#1279, projectcalico/calico#3145). Computing all
//! checksums before the packet leaves the tunnel avoids that. Calico disables the offload for the same kernels.

/// How the backend treats the checksum offload of the tunnel device (`tx-checksum-ip-generic` of `ethtool -k`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChecksumOffload {
    /// Disables it on kernels before 5.7, which send wrong checksums otherwise. Leaves it alone on others.
    #[default]
    ByKernel,
    /// Leaves it alone.
    Untouched,
    /// Disables it.
    Off,
}

impl ChecksumOffload {
    /// Returns true if the offload is disabled on a kernel of this release, as `uname -r` prints it.
    #[must_use]
    pub fn is_off_on(self, release: &str) -> bool {
        match self {
            Self::ByKernel => version(release).is_some_and(|version| version < (5, 7)),
            Self::Untouched => false,
            Self::Off => true,
        }
    }
}

/// Returns the first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offload_is_disabled_on_kernels_that_send_wrong_checksums() {
        for release in
            ["3.10.0-1160.el7.x86_64", "4.18.0-553.el8", "5.4.0-150-generic", "5.6.19", "5.6", "4.9-rc3"]
        {
            assert!(ChecksumOffload::ByKernel.is_off_on(release), "{release}");
        }
        for release in ["5.7.0", "5.7", "5.10.0-28-amd64", "5.15.133.1-microsoft", "6.1.0", "6.18.5", "10.0"]
        {
            assert!(!ChecksumOffload::ByKernel.is_off_on(release), "{release}");
        }
    }

    #[test]
    fn an_unreadable_release_counts_as_a_correct_kernel() {
        for release in ["", "linux", "5", "5.", ".4", "99999999999.1", "v5.4"] {
            assert!(!ChecksumOffload::ByKernel.is_off_on(release), "{release:?}");
        }
    }

    #[test]
    fn an_explicit_setting_applies_to_every_kernel() {
        for release in ["4.4.0", "6.1.0", ""] {
            assert!(
                ChecksumOffload::Off.is_off_on(release) && !ChecksumOffload::Untouched.is_off_on(release)
            );
        }
    }
}
