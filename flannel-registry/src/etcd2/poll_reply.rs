//! Replies to long polls.

use flannel_core::BoxError;
use futures::future::BoxFuture;
use hyper::Response;
use hyper::body::Incoming;

use super::connection::Connection;

/// The reply to a long poll.
pub(super) enum PollReply {
    /// The headers have arrived.
    Body(Connection, Incoming),
    /// Nothing has arrived. `etcd --proxy on` holds the headers back until the next event.
    Pending(BoxFuture<'static, (Connection, Result<Response<Incoming>, BoxError>)>),
    /// The body was read.
    Read(Connection),
    /// The connection failed.
    Failed,
}
