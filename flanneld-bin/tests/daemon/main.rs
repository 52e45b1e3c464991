//! The whole daemon: hosts as namespaces, a real etcd, real traffic.

mod cluster;
mod failing;
mod living;
