//! Errors of requests to the kernel.

use std::io;

use netlink_packet_core::DecodeError;

/// Why a call to the kernel failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused the request; [`Error::errno`] and the predicates say why.
    #[error("{}", refusal(.object, .message.as_deref()))]
    Kernel {
        /// The request: `put route 10.5.3.0/24 via 10.5.3.0 dev 7 onlink`.
        object: String,
        /// The kernel's explanation (`NLMSGERR_ATTR_MSG`), if it sent one.
        message: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The objects kept changing while they were read; retry later.
    #[error("the {0} kept changing while they were read")]
    Interrupted(&'static str),
    /// The kernel's answer was lost, so the request may or may not have been executed; read the
    /// objects to find out.
    #[error("{object} was sent but not answered")]
    Unanswered {
        /// The request.
        object: String,
    },
    /// The kernel sent an answer that this crate cannot read; a retry does not help.
    #[error("the answer to {object} cannot be read: {reason}")]
    Malformed {
        /// The request.
        object: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The name is not valid for a link: it must have 1 to 15 bytes, none of them NUL, `/`, `:` or
    /// white space (`dev_valid_name` in `net/core/dev.c`).
    #[error("{0:?} is not a valid name of a link")]
    InvalidName(String),
    /// The socket itself failed; open a new one.
    #[error("netlink socket failed")]
    Socket(#[from] io::Error),
}

impl Error {
    /// Returns the error number of the kernel's answer, or of the failed system call.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } | Self::Socket(source) => source.raw_os_error(),
            Self::Interrupted(_)
            | Self::Unanswered { .. }
            | Self::Malformed { .. }
            | Self::InvalidName(_) => None,
        }
    }

    /// Returns whether the object, or its link, does not exist (`ENOENT`, `ESRCH`,
    /// `ENODEV`, `EADDRNOTAVAIL`).
    pub fn is_not_found(&self) -> bool {
        self.errno().is_some_and(is_gone)
    }

    /// Returns whether the object exists already (`EEXIST`).
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Returns whether the caller lacks the capability (`EPERM`, `EACCES`): `CAP_NET_ADMIN` in the user
    /// namespace that owns the network namespace.
    pub fn is_permission(&self) -> bool {
        matches!(self.errno(), Some(libc::EPERM | libc::EACCES))
    }

    /// Returns whether there is no route to the destination (`ENETUNREACH`, `EHOSTUNREACH`).
    pub fn is_unreachable(&self) -> bool {
        matches!(self.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH))
    }

    pub(crate) fn malformed(object: impl ToString, reason: &DecodeError) -> Self {
        Self::Malformed { object: object.to_string(), reason: reason.to_string() }
    }
}

/// Returns whether an error number means that the object does not exist. The kernel uses different
/// numbers for different kinds of object.
pub(crate) fn is_gone(errno: i32) -> bool {
    matches!(errno, libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL)
}

fn refusal(object: &str, message: Option<&str>) -> String {
    match message {
        Some(message) => format!("kernel refused to {object}: {message}"),
        None => format!("kernel refused to {object}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(errno: i32, message: Option<&str>) -> Error {
        Error::Kernel {
            object: "put route 10.5.3.0/24".to_owned(),
            message: message.map(str::to_owned),
            source: io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn a_refusal_names_the_object_and_the_kernels_explanation() {
        let error = kernel(libc::EINVAL, Some("Nexthop has invalid gateway"));
        assert_eq!(error.to_string(), "kernel refused to put route 10.5.3.0/24: Nexthop has invalid gateway");
        assert_eq!(kernel(libc::EINVAL, None).to_string(), "kernel refused to put route 10.5.3.0/24");
    }

    #[test]
    fn a_missing_capability_differs_from_a_missing_object() {
        assert!(kernel(libc::EPERM, None).is_permission());
        assert!(!kernel(libc::EPERM, None).is_not_found());
        assert!(kernel(libc::ESRCH, None).is_not_found());
        assert!(kernel(libc::EEXIST, None).is_exists());
    }
}
