//! The result of a packet's walk through a chain of rules.

/// How deep chains that call each other are followed. The kernel refuses loops.
pub(crate) const MAX_DEPTH: usize = 32;

/// What a chain decides about a packet.
#[derive(Debug)]
pub(crate) enum ChainVerdict<R> {
    /// It lets the packet pass.
    Accepted,
    /// This rule drops or rejects the packet.
    Stopped(R),
    /// No rule decides: the policy applies, or the calling chain continues.
    FellThrough,
}
