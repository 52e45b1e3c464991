//! The subnet file, by default `/run/flannel/subnet.env`, from which container runtimes and CNI plugins read the subnet of
//! this host.
//!
//! It is replaced atomically. The next start reads it only to request the same subnet again ([`read_previous`]).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use flannel_core::{NetworkConfig, Running, SubnetKey, SubnetPool};
use flannel_registry::{WriteError, write_atomically};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

mod previous;

pub use previous::{Previous, read_previous};

/// The keys of the file, in the order in which they are written.
const NETWORK: &str = "FLANNEL_NETWORK";
const SUBNET: &str = "FLANNEL_SUBNET";
const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
const MTU: &str = "FLANNEL_MTU";
const IPMASQ: &str = "FLANNEL_IPMASQ";

/// The values of the subnet file. A family that is not in use has neither a network nor a subnet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubnetEnv {
    /// The IPv4 network of the whole cluster.
    pub network: Option<Ipv4Net>,
    /// The IPv4 subnet of this host.
    pub subnet: Option<Ipv4Net>,
    /// The IPv6 network of the whole cluster.
    pub ipv6_network: Option<Ipv6Net>,
    /// The IPv6 subnet of this host.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// The largest packet, in bytes, that containers may send.
    pub mtu: u32,
    /// Whether traffic that leaves the network is masqueraded.
    pub ip_masq: bool,
}

/// Writes the text of the file. A subnet is written as its first address, which is the bridge's.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(network) = self.network {
            writeln!(f, "{NETWORK}={}", network.trunc())?;
        }
        if let Some(subnet) = self.subnet {
            let first = Ipv4Addr::from_bits(subnet.network().to_bits().wrapping_add(1));
            writeln!(f, "{SUBNET}={first}/{}", subnet.prefix_len())?;
        }
        if let Some(network) = self.ipv6_network {
            writeln!(f, "{IPV6_NETWORK}={}", network.trunc())?;
        }
        if let Some(subnet) = self.ipv6_subnet {
            let first = Ipv6Addr::from_bits(subnet.network().to_bits().wrapping_add(1));
            writeln!(f, "{IPV6_SUBNET}={first}/{}", subnet.prefix_len())?;
        }
        writeln!(f, "{MTU}={}", self.mtu)?;
        writeln!(f, "{IPMASQ}={}", self.ip_masq)
    }
}

impl SubnetEnv {
    /// Returns the values for a network and the subnet of a host.
    #[must_use]
    pub fn new(config: &NetworkConfig, subnet: &SubnetKey, mtu: u32, ip_masq: bool) -> Self {
        let network = |pool: Option<SubnetPool>| pool.map(|pool| pool.network());
        Self {
            network: network(config.ipv4)
                .and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None }),
            subnet: subnet.v4(),
            ipv6_network: network(config.ipv6)
                .and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None }),
            ipv6_subnet: subnet.v6(),
            mtu,
            ip_masq,
        }
    }

    /// Replaces the file at `path` atomically, and creates its directory if it is missing.
    ///
    /// After a crash of the host, the file is the old one or the new one. A regular file keeps its mode; anything else, such
    /// as a symbolic link, is replaced by a file of mode 0644.
    ///
    /// # Errors
    ///
    /// [`WriteError`] if the file system refuses; then the old file is left.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        write_atomically(path, self.to_string().as_bytes(), 0o644)
    }
}

/// The subnet file of a running network.
///
/// ```no_run
/// # fn write(network: &flannel_core::Running) -> Result<(), Box<dyn std::error::Error>> {
/// use flannel_node::SubnetFile;
///
/// let file = SubnetFile::new("/run/flannel/subnet.env").with_masquerade(true);
/// file.write(network)?;
/// // … and when the host leaves the network:
/// file.remove()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetFile {
    path: PathBuf,
    masquerade: bool,
}

impl SubnetFile {
    /// Describes the file at this path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), masquerade: false }
    }

    /// Sets whether traffic that leaves the network is masqueraded; container runtimes then don't do it.
    #[must_use]
    pub fn with_masquerade(self, masquerade: bool) -> Self {
        Self { masquerade, ..self }
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file by one for this network.
    ///
    /// # Errors
    ///
    /// [`WriteError`], as for [`SubnetEnv::write`].
    pub fn write(&self, network: &Running) -> Result<(), WriteError> {
        let Running { config, lease, mtu, .. } = network;
        SubnetEnv::new(config, &lease.subnet, *mtu, self.masquerade).write(&self.path)
    }

    /// Removes the file: a stale one would hand out addresses that another host may lease. A missing file is no error.
    ///
    /// # Errors
    ///
    /// An I/O error if the file system refuses.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A temporary directory.
    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("subnet-env-{}-{n}", std::process::id()));
            fs::create_dir(&path).expect("a fresh directory");
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).expect("readable");
            entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("exists").permissions().mode() & 0o7777
    }

    fn ipv4_only() -> SubnetEnv {
        SubnetEnv {
            network: Some("172.30.0.0/16".parse().expect("net")),
            subnet: Some("172.30.8.0/21".parse().expect("net")),
            ipv6_network: None,
            ipv6_subnet: None,
            mtu: 1500,
            ip_masq: false,
        }
    }

    #[test]
    fn the_text_is_upstreams() {
        let text = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.8.1/21\nFLANNEL_MTU=1500\n\
                    FLANNEL_IPMASQ=false\n";
        assert_eq!(ipv4_only().to_string(), text);
        let dual = SubnetEnv {
            network: Some("10.42.3.4/16".parse().expect("net")),
            subnet: Some("10.42.0.0/24".parse().expect("net")),
            ipv6_network: Some("2001:CAFE:42:0::1/56".parse().expect("net")),
            ipv6_subnet: Some("2001:cafe:42::/64".parse().expect("net")),
            mtu: 1450,
            ip_masq: true,
        };
        let text = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.0.1/24\n\
                    FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        assert_eq!(dual.to_string(), text);
        let ipv6_only = SubnetEnv { network: None, subnet: None, ..dual };
        assert_eq!(ipv6_only.to_string(), text.split_inclusive('\n').skip(2).collect::<String>());
    }

    #[test]
    fn a_new_file_is_readable_by_all_users() {
        let directory = Directory::new();
        let path = directory.0.join("run/flannel/subnet.env");
        ipv4_only().write(&path).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), ipv4_only().to_string());
        assert_eq!(mode(&path), 0o644);
        assert_eq!(directory.names(), ["run"], "and no temporary file");
    }

    #[test]
    fn an_existing_file_keeps_its_mode() {
        let directory = Directory::new();
        let path = directory.0.join("subnet.env");
        fs::write(&path, "FLANNEL_MTU=1\nolder and longer than the new file".repeat(100)).expect("old");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("mode");
        ipv4_only().write(&path).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), ipv4_only().to_string());
        assert_eq!(mode(&path), 0o640);
        assert_eq!(directory.names(), ["subnet.env"]);
    }

    #[test]
    fn a_symbolic_link_is_replaced() {
        let directory = Directory::new();
        let (path, target) = (directory.0.join("subnet.env"), directory.0.join("target"));
        fs::write(&target, "precious").expect("target");
        fs::set_permissions(&target, Permissions::from_mode(0o600)).expect("mode");
        symlink(&target, &path).expect("link");
        ipv4_only().write(&path).expect("written");
        assert!(fs::symlink_metadata(&path).expect("exists").is_file());
        assert_eq!(mode(&path), 0o644);
        assert_eq!(fs::read_to_string(&target).expect("read"), "precious");
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file_and_names_the_path() {
        let directory = Directory::new();
        let path = directory.0.join("subnet.env");
        fs::create_dir(&path).expect("a directory at the path");
        let error = ipv4_only().write(&path).expect_err("a directory cannot be replaced");
        assert_eq!(error.to_string(), format!("replace {}", path.display()));
        assert_eq!(directory.names(), ["subnet.env"]);

        let below_a_file = directory.0.join("file/subnet.env");
        fs::write(directory.0.join("file"), "").expect("file");
        assert!(ipv4_only().write(&below_a_file).is_err());
        assert!(ipv4_only().write(Path::new("/")).is_err());
        assert!(ipv4_only().write(Path::new("/proc/none/subnet.env")).is_err());
    }
}
