//! The network and the subnets of an earlier run, read from its subnet file.
//!
//! The file may have been edited or written by another program, so its faults are only warnings: without a previous subnet
//! the host requests any free one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flannel_firewall::OverlayPrefixes;
use ipnet::{Ipv4Net, Ipv6Net};

use super::{IPV6_NETWORK, IPV6_SUBNET, NETWORK, SUBNET};

/// The maximum size of the file, in bytes; a subnet file has less than 300.
const MAX_SIZE: u64 = 64 * 1024;

/// The networks and subnets of an earlier run, with the host bits clear.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Previous {
    /// The IPv4 network of the cluster, if there was one.
    pub network: Option<Ipv4Net>,
    /// The IPv6 network of the cluster, if there was one.
    pub ipv6_network: Option<Ipv6Net>,
    /// The IPv4 subnet, if there was one.
    pub subnet: Option<Ipv4Net>,
    /// The IPv6 subnet, if there was one.
    pub ipv6_subnet: Option<Ipv6Net>,
}

impl Previous {
    /// Returns the prefixes of the earlier run's firewall rules.
    pub fn prefixes(&self) -> Vec<OverlayPrefixes> {
        let v4 = self.network.zip(self.subnet).map(|(network, subnet)| (network.into(), subnet.into()));
        let v6 =
            self.ipv6_network.zip(self.ipv6_subnet).map(|(network, subnet)| (network.into(), subnet.into()));
        v4.into_iter()
            .chain(v6)
            .filter_map(|(network, subnet)| OverlayPrefixes::new(network, subnet))
            .collect()
    }
}

/// A fault of the file, to be logged.
#[derive(Debug, thiserror::Error)]
pub enum PreviousWarning {
    /// The file exists but cannot be read.
    #[error("Couldn't fetch previous {SUBNET} from subnet file at {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// A line is malformed, so the whole file is ignored.
    #[error("Couldn't fetch previous {SUBNET} from subnet file at {}: can't separate key from value in line {line}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
    },
    /// The file holds no subnet.
    #[error("no subnet found for key: {SUBNET} in file: {}", path.display())]
    NoSubnet {
        /// The file.
        path: PathBuf,
    },
    /// A value is not a subnet of the key's family.
    #[error("Couldn't parse previous {key} from subnet file at {}: invalid CIDR address: {value:?}", path.display())]
    NotASubnet {
        /// The file.
        path: PathBuf,
        /// The key of the value.
        key: &'static str,
        /// The value, or the element of a list.
        value: String,
    },
    /// A key lists several subnets.
    #[error("error reading subnet: more than 1 entry found for key: {key} in file {}", path.display())]
    SeveralSubnets {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
}

/// Reads the subnets that an earlier run wrote to `path`, and the faults of the file.
///
/// Without a file there is neither a subnet nor a warning.
pub fn read_previous(path: &Path) -> (Previous, Vec<PreviousWarning>) {
    match read(path) {
        Ok(Some(bytes)) => parse(path, &bytes),
        Ok(None) => (Previous::default(), Vec::new()),
        Err(cause) => {
            (Previous::default(), vec![PreviousWarning::Unreadable { path: path.to_owned(), cause }])
        }
    }
}

/// Reads the file; `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
    match fs::metadata(path) {
        // Opening a pipe would block.
        Ok(metadata) if !metadata.is_file() => return Err(invalid("not a regular file")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    // A truncated value could be another subnet.
    if bytes.len() as u64 > MAX_SIZE { Err(invalid("the file is too large")) } else { Ok(Some(bytes)) }
}

/// Parses the contents of the file at `path`.
fn parse(path: &Path, bytes: &[u8]) -> (Previous, Vec<PreviousWarning>) {
    let values = match lines(bytes) {
        Ok(values) => values,
        Err(line) => {
            let malformed = PreviousWarning::Malformed { path: path.to_owned(), line };
            return (Previous::default(), vec![malformed]);
        }
    };
    let mut warnings = Vec::new();
    if !values.contains_key(SUBNET) && !values.contains_key(IPV6_SUBNET) {
        warnings.push(PreviousWarning::NoSubnet { path: path.to_owned() });
    }
    let v4 = |key, warnings: &mut _| one_net(path, key, &values, warnings).map(|net: Ipv4Net| net.trunc());
    let v6 = |key, warnings: &mut _| one_net(path, key, &values, warnings).map(|net: Ipv6Net| net.trunc());
    let previous = Previous {
        subnet: v4(SUBNET, &mut warnings),
        ipv6_subnet: v6(IPV6_SUBNET, &mut warnings),
        network: v4(NETWORK, &mut warnings),
        ipv6_network: v6(IPV6_NETWORK, &mut warnings),
    };
    (previous, warnings)
}

/// Parses the single network or subnet of `key`, whose value may be a list.
fn one_net<N: FromStr>(
    path: &Path,
    key: &'static str,
    values: &BTreeMap<String, String>,
    warnings: &mut Vec<PreviousWarning>,
) -> Option<N> {
    let mut subnets = Vec::new();
    for element in values.get(key)?.split(',').map(str::trim) {
        match element.parse() {
            Ok(subnet) => subnets.push(subnet),
            Err(_) => warnings.push(PreviousWarning::NotASubnet {
                path: path.to_owned(),
                key,
                value: element.to_owned(),
            }),
        }
    }
    if subnets.len() > 1 {
        warnings.push(PreviousWarning::SeveralSubnets { path: path.to_owned(), key });
        return None;
    }
    subnets.pop()
}

/// Reads lines of `KEY=value` or `KEY: value`, in the manner of dotenv files; a later line wins.
///
/// The error is the number of the first line, from 1, that is neither this, nor blank, nor a comment.
fn lines(bytes: &[u8]) -> Result<BTreeMap<String, String>, usize> {
    let mut values = BTreeMap::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = str::from_utf8(line).map_err(|_| index + 1)?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = key_and_value(line).ok_or(index + 1)?;
        values.insert(key.to_owned(), value.to_owned());
    }
    Ok(values)
}

/// Splits one line, without `export`, quotes and a comment after the value.
fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once(['=', ':'])?;
    let (key, value) = (key.trim(), value.trim());
    let named = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    named.then_some((key, unquoted(value)?))
}

/// The text inside quotes, or the text up to a comment. None if a quote is not closed.
fn unquoted(value: &str) -> Option<&str> {
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return Some(value.split(" #").next().unwrap_or(value).trim_end());
    };
    let (inside, after) = value[1..].split_once(quote)?;
    let after = after.trim_start();
    (after.is_empty() || after.starts_with('#')).then_some(inside)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::SubnetEnv;
    use super::*;

    /// What is read from `text`, with the subnets and the warnings as text.
    fn outcome(text: &str) -> (Option<String>, Option<String>, Vec<String>) {
        let (previous, warnings) = parse(Path::new("/f"), text.as_bytes());
        (
            previous.subnet.map(|net| net.to_string()),
            previous.ipv6_subnet.map(|net| net.to_string()),
            warnings.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn a_subnet_is_found_in_every_form_of_the_line() {
        for line in [
            "FLANNEL_SUBNET=172.30.8.1/21",
            "FLANNEL_SUBNET=172.30.8.0/21",
            "export FLANNEL_SUBNET=172.30.8.1/21",
            "  FLANNEL_SUBNET = 172.30.8.1/21  ",
            "FLANNEL_SUBNET: 172.30.8.1/21",
            "FLANNEL_SUBNET=\"172.30.8.1/21\"",
            "FLANNEL_SUBNET='172.30.8.1/21' # mine",
            "FLANNEL_SUBNET=172.30.8.1/21 # mine",
            "FLANNEL_SUBNET=172.30.8.1/21,",
            "FLANNEL_SUBNET=bad, 172.30.8.1/21",
            "# note\r\n\r\nFLANNEL_SUBNET=172.30.8.1/21\r\nOTHER=\"a b\"\r\n",
            "FLANNEL_SUBNET=10.0.0.0/8\nFLANNEL_SUBNET=172.30.8.1/21",
        ] {
            assert_eq!(outcome(line).0.as_deref(), Some("172.30.8.0/21"), "{line}");
        }
        let (_, ipv6, warnings) = outcome("FLANNEL_IPV6_SUBNET: fc00:0:0:1::1/64");
        assert_eq!((ipv6.as_deref(), warnings), (Some("fc00:0:0:1::/64"), vec![]));
    }

    #[test]
    fn whatever_is_odd_is_a_warning_and_no_subnet() {
        let malformed = |line: u32| {
            format!(
                "Couldn't fetch previous FLANNEL_SUBNET from subnet file at /f: \
                 can't separate key from value in line {line}"
            )
        };
        let not_a_subnet = |key: &str, value: &str| {
            format!("Couldn't parse previous {key} from subnet file at /f: invalid CIDR address: \"{value}\"")
        };
        for (text, warning) in [
            ("", "no subnet found for key: FLANNEL_SUBNET in file: /f".to_owned()),
            ("FLANNEL_MTU=1500\n", "no subnet found for key: FLANNEL_SUBNET in file: /f".to_owned()),
            ("FLANNEL_SUBNET=172.30.8.1/21\nnonsense", malformed(2)),
            ("FLANNEL_SUBNET=\"172.30.8.1/21", malformed(1)),
            ("FLANNEL_SUBNET=\"172.30.8.1/21\"x", malformed(1)),
            ("=172.30.8.1/21", malformed(1)),
            ("FLANNEL_SUBNET=", not_a_subnet("FLANNEL_SUBNET", "")),
            ("FLANNEL_SUBNET=172.30.8.1", not_a_subnet("FLANNEL_SUBNET", "172.30.8.1")),
            ("FLANNEL_SUBNET=172.30.8.1/33", not_a_subnet("FLANNEL_SUBNET", "172.30.8.1/33")),
            ("FLANNEL_SUBNET=fc00::1/64", not_a_subnet("FLANNEL_SUBNET", "fc00::1/64")),
            ("FLANNEL_IPV6_SUBNET=10.0.0.1/24", not_a_subnet("FLANNEL_IPV6_SUBNET", "10.0.0.1/24")),
            (
                "FLANNEL_SUBNET=10.0.0.1/24,10.0.1.1/24",
                "error reading subnet: more than 1 entry found for key: FLANNEL_SUBNET in file /f".to_owned(),
            ),
        ] {
            assert_eq!(outcome(text), (None, None, vec![warning]), "{text}");
        }
    }

    #[test]
    fn the_networks_of_earlier_rules_are_those_of_whole_pairs() {
        let nets = |text: &str| {
            let nets = parse(Path::new("/f"), text.as_bytes()).0.prefixes();
            nets.iter().map(|nets| format!("{} of {}", nets.subnet(), nets.network())).collect::<Vec<_>>()
        };
        let v4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\n";
        let v6 = "FLANNEL_IPV6_NETWORK=fd10:5::/48\nFLANNEL_IPV6_SUBNET=fd10:5:0:7::1/64\n";
        assert_eq!(
            nets(&format!("{v4}{v6}")),
            ["10.5.7.0/24 of 10.5.0.0/16", "fd10:5:0:7::/64 of fd10:5::/48"]
        );
        assert_eq!(nets("FLANNEL_SUBNET=10.5.7.1/24"), Vec::<String>::new());
        assert_eq!(nets("FLANNEL_NETWORK=0.0.0.0/0\nFLANNEL_SUBNET=10.5.7.1/24"), Vec::<String>::new());
    }

    #[test]
    fn only_a_file_that_does_not_exist_is_passed_over_in_silence() {
        let directory = std::env::temp_dir();
        let missing = directory.join(format!("no-such-subnet-env-{}", std::process::id()));
        let (previous, warnings) = read_previous(&missing);
        assert_eq!((previous, warnings.len()), (Previous::default(), 0));
        // A directory, a device that never ends, and a path below a file.
        for (unreadable, why) in [
            (directory.as_path(), "not a regular file"),
            (Path::new("/dev/zero"), "not a regular file"),
            (Path::new("/proc/version/x"), "Not a directory"),
        ] {
            let (previous, warnings) = read_previous(unreadable);
            assert_eq!((previous, warnings.len()), (Previous::default(), 1), "{unreadable:?}");
            let line = warnings[0].to_string();
            assert!(line.contains(why), "{line}");
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_believed() {
        let path = std::env::temp_dir().join(format!("large-subnet-env-{}", std::process::id()));
        fs::write(&path, format!("FLANNEL_SUBNET=10.0.0.1/24\n{}", "#".repeat(MAX_SIZE as usize)))
            .expect("written");
        let (previous, warnings) = read_previous(&path);
        fs::remove_file(&path).expect("removed");
        assert_eq!(previous, Previous::default());
        assert!(matches!(warnings[..], [PreviousWarning::Unreadable { .. }]), "{warnings:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_bring_the_reader_down(bytes: Vec<u8>) {
            let _ = parse(Path::new("/f"), &bytes);
        }

        #[test]
        fn no_line_brings_the_reader_down(
            text in "((export )?(FLANNEL_(IPV6_)?SUBNET)?[ =:]{0,2}['\"]?[0-9a-f.:/,ä #]{0,20}['\"]?[\r\n]{0,2}){0,4}"
        ) {
            let _ = parse(Path::new("/f"), text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read_back(
            subnet in proptest::option::of((any::<u32>(), 0_u8..=32)),
            ipv6 in proptest::option::of((any::<u128>(), 0_u8..=128)),
            mtu: u32,
            ip_masq: bool,
        ) {
            let subnet = subnet.map(|(bits, length)| Ipv4Net::new(bits.into(), length).expect("length").trunc());
            let ipv6_subnet = ipv6.map(|(bits, length)| Ipv6Net::new(bits.into(), length).expect("length").trunc());
            let env = SubnetEnv { network: subnet, subnet, ipv6_network: ipv6_subnet, ipv6_subnet, mtu, ip_masq };
            let (previous, warnings) = parse(Path::new("/f"), env.to_string().as_bytes());
            // Host routes have no address but their own, so "plus one" leaves them.
            if subnet.is_none_or(|net| net.prefix_len() < 32) && ipv6_subnet.is_none_or(|net| net.prefix_len() < 128) {
                let (network, ipv6_network) = (subnet, ipv6_subnet);
                prop_assert_eq!(previous, Previous { network, ipv6_network, subnet, ipv6_subnet });
            }
            prop_assert_eq!(warnings.len(), usize::from(subnet.is_none() && ipv6_subnet.is_none()));
        }
    }
}
