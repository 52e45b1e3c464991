//! Traffic between namespaces, generated and checked by this process, without `ping` or `iperf`.
//!
//! A socket stays in the namespace in which it was opened, so each function opens its sockets inside and then works on
//! ordinary threads.

pub(crate) mod datagrams;
mod pattern;
pub(crate) mod ping;
pub(crate) mod stream;
