//! The registry in etcd v3, on a real etcd.

mod contract;
mod members;
mod proxy;
mod records;
mod server;
mod watch;
