//! Code that runs with fewer capabilities than its test.

use std::io;

use flannel_netlink::Namespace;

use crate::sys;

/// Permits administering the network, `CAP_NET_ADMIN` (`capabilities(7)`).
pub const CAP_NET_ADMIN: u32 = 12;
/// Permits entering namespaces, among others, `CAP_SYS_ADMIN` (`capabilities(7)`).
pub const CAP_SYS_ADMIN: u32 = 21;

/// Runs `f` in a namespace on a thread that has only these capabilities, as have the threads that it starts.
///
/// # Errors
/// See [`Namespace::run`]; also fails if the process lacks one of the capabilities.
///
/// ```no_run
/// use flannel_netlink::Namespace;
/// use flannel_testing::{CAP_NET_ADMIN, with_capabilities};
///
/// let made = with_capabilities(&Namespace::current()?, &[CAP_NET_ADMIN], Namespace::create)?;
/// assert!(made.is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn with_capabilities<T: Send>(
    namespace: &Namespace,
    capabilities: &[u32],
    f: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    namespace.run(|| sys::keep_capabilities(capabilities).map(|()| f()))?
}
