//! Command line options.

use lexopt::prelude::*;

/// The options of the example.
#[derive(Debug)]
pub(crate) struct Args {
    /// The number of hosts.
    pub(crate) hosts: usize,
    /// The name of the backend in the network config.
    pub(crate) backend: String,
    /// Whether to keep everything up until interrupted.
    pub(crate) keep: bool,
}

/// The output of `--help`.
pub(crate) const USAGE: &str = "\
A flannel cluster on this machine: hosts and pods as network namespaces, one
network per host, all in this process, with an in-memory registry.

Usage: cargo run --release --example cluster -- [OPTIONS]

  --hosts N         number of hosts, 2 to 64 (default 3)
  --backend NAME    vxlan, host-gw or udp (default vxlan)
  --keep            keep everything up until Ctrl-C
  --help            show this help

Requires Linux and root (or CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN), and
no other program. Changes nothing outside its own namespaces.
";

/// Parses the options; returns `None` for `--help`.
pub(crate) fn read() -> Result<Option<Args>, lexopt::Error> {
    let mut args = Args { hosts: 3, backend: "vxlan".to_owned(), keep: false };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("hosts") => args.hosts = parser.value()?.parse()?,
            Long("backend") => args.backend = parser.value()?.parse()?,
            Long("keep") => args.keep = true,
            Long("help") | Short('h') => return Ok(None),
            other @ (Short(_) | Long(_) | Value(_)) => return Err(other.unexpected()),
        }
    }
    if !(2..=64).contains(&args.hosts) {
        return Err(format!("--hosts is {}, expected 2 to 64", args.hosts).into());
    }
    if !["vxlan", "host-gw", "udp"].contains(&args.backend.as_str()) {
        return Err(format!("--backend is {:?}, expected vxlan, host-gw or udp", args.backend).into());
    }
    Ok(Some(args))
}
