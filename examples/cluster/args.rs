//! What the person asks for.

use lexopt::prelude::*;

/// The options of the example.
#[derive(Debug)]
pub(crate) struct Args {
    /// The number of hosts.
    pub(crate) hosts: usize,
    /// The backend, by its name in the network config.
    pub(crate) backend: String,
    /// Whether to leave everything up until interrupted.
    pub(crate) keep: bool,
}

/// What `--help` shows.
pub(crate) const USAGE: &str = "\
A whole flannel cluster on this machine: hosts and pods as network namespaces,
one network per host, all in this process, with a registry in memory.

Usage: cargo run --release --example cluster -- [OPTIONS]

  --hosts N         number of hosts, 2 to 64 (default 3)
  --backend NAME    what carries the traffic: vxlan, host-gw or udp (default vxlan)
  --keep            leave it up for a look around until Ctrl-C
  --help            this text

Needs Linux and root (or CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN), and no
other program. Nothing outside its own namespaces is touched.
";

/// Reads the options; `None` if help was asked for.
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
        return Err(format!("--hosts is {}, and must be from 2 to 64", args.hosts).into());
    }
    if !["vxlan", "host-gw", "udp"].contains(&args.backend.as_str()) {
        return Err(format!("--backend is {:?}, and must be vxlan, host-gw or udp", args.backend).into());
    }
    Ok(Some(args))
}
