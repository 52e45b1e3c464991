//! Traffic between namespaces, made and checked by this process: no `ping` and no `iperf` program is needed.
//!
//! A socket stays in the namespace in which it was opened, so each function opens its sockets inside and then
//! works on ordinary threads.

pub(crate) mod datagrams;
mod pattern;
pub(crate) mod ping;
pub(crate) mod stream;
