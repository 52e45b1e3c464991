//! Packets of up to 64 KiB, which the kernel hands out and takes, and the packets of one MTU that go between hosts.

pub(crate) mod coalesce;
pub(crate) mod split;
pub(crate) mod virtio;
