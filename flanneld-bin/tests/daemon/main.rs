//! The daemon end to end: hosts as namespaces, a real etcd, real traffic.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod certificates;
mod choice;
mod cluster;
mod cni;
mod direct;
mod extension;
mod external;
mod failing;
mod firewall;
mod guides;
mod healing;
mod identity;
mod interfaces;
mod killed;
mod live;
mod living;
mod migrate;
mod mixed;
mod moved;
mod observed;
mod outage;
mod ping;
mod release;
mod secured;
mod troubleshooting;
mod udp;
mod upstream_defects;
mod wildcard;
