//! Errors of calls to etcd.

use std::error::Error;

use flannel_core::BoxError;
use tonic::{Code, Status};

/// Why a call failed, by its consequence for the caller.
#[derive(Debug)]
pub(super) enum CallError {
    /// No member answered; a write may have been applied.
    NoAnswer(BoxError),
    /// Nothing was applied, and the same call may succeed later.
    Transient(BoxError),
    /// Nothing was applied, and an operator must act.
    Refused(BoxError),
}

impl CallError {
    /// Returns the cause alone.
    pub(super) fn into_reason(self) -> BoxError {
        match self {
            Self::NoAnswer(reason) | Self::Transient(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// Classifies an error. The codes are those of gRPC as etcd uses them (`api/v3rpc/rpctypes/error.go`).
pub(super) fn call_error(error: &etcd_client::Error, url: &str) -> CallError {
    if let etcd_client::Error::GRpcStatus(status) = error {
        let text = text(status);
        let reason = format!("{url}: {text}").into();
        return match status.code() {
            Code::NotFound | Code::OutOfRange => CallError::Transient(reason),
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::Unauthenticated => CallError::Refused(reason),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => CallError::NoAnswer(reason),
        };
    }
    let reason = format!("{url}: {error}").into();
    if matches!(error, etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_)) {
        CallError::Refused(reason)
    } else {
        CallError::NoAnswer(reason)
    }
}

/// Returns the message of a status and its causes, without repetitions.
fn text(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_proves_that_nothing_was_written() {
        let of = |code| call_error(&Status::new(code, "message of etcd").into(), "http://a");
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Unknown, Code::Cancelled] {
            assert!(matches!(of(code), CallError::NoAnswer(_)), "{code:?}");
        }
        for code in [Code::PermissionDenied, Code::Unauthenticated, Code::ResourceExhausted] {
            assert!(matches!(of(code), CallError::Refused(_)), "{code:?}");
        }
        assert_eq!(of(Code::NotFound).into_reason().to_string(), "http://a: message of etcd");
    }
}
