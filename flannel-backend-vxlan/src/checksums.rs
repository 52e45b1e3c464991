//! Whether the tunnel may leave checksums to the interface below. Pure.
//!
//! Kernels before 5.7 may send a wrong outer checksum when a packet that the tunnel wrapped is masqueraded on its way;
//! the receiver drops it, and connections to another host stall for seconds (flannel-io/flannel#1279,
//! projectcalico/calico#3145). They do not if all checksums are computed before the packet leaves the tunnel. Calico
//! draws the line at the same release.

/// What becomes of the checksum offload of the tunnel device (`tx-checksum-ip-generic` of `ethtool -k`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChecksumOffload {
    /// Switched off on kernels that send wrong checksums otherwise, those before 5.7; as it is on others.
    #[default]
    ByKernel,
    /// As it is.
    Untouched,
    /// Switched off.
    Off,
}

impl ChecksumOffload {
    /// Tells whether it is to be off on a kernel with this release, as `uname -r` shows it.
    #[must_use]
    pub fn is_off_on(self, release: &str) -> bool {
        match self {
            Self::ByKernel => version(release).is_some_and(|version| version < (5, 7)),
            Self::Untouched => false,
            Self::Off => true,
        }
    }
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offload_is_switched_off_on_kernels_that_send_wrong_checksums() {
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
    fn of_a_release_that_cannot_be_read_nothing_is_assumed() {
        for release in ["", "linux", "5", "5.", ".4", "99999999999.1", "v5.4"] {
            assert!(!ChecksumOffload::ByKernel.is_off_on(release), "{release:?}");
        }
    }

    #[test]
    fn what_was_chosen_holds_on_every_kernel() {
        for release in ["4.4.0", "6.1.0", ""] {
            assert!(
                ChecksumOffload::Off.is_off_on(release) && !ChecksumOffload::Untouched.is_off_on(release)
            );
        }
    }
}
