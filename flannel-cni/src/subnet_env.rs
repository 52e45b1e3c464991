//! The file `subnet.env`, in which flanneld publishes the subnet of the host.
//!
//! Unlike `flannel-node`, which ignores invalid lines of an earlier run, the plugin rejects an incomplete file, with upstream's
//! messages. It does not depend on `flannel-node`, because a runtime starts it for each container.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use ipnet::IpNet;

/// The contents of the file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct SubnetEnv {
    /// The networks of the whole cluster, IPv4 first.
    pub(crate) networks: Vec<IpNet>,
    /// The subnets of this host, IPv4 first.
    pub(crate) subnets: Vec<IpNet>,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Whether flanneld masquerades.
    pub(crate) ip_masq: bool,
}

/// The keys, in the order in which an error lists missing ones.
const KEYS: [&str; 6] = [
    "FLANNEL_NETWORK",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_SUBNET",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_IPMASQ",
];

/// Reads the file at `path`. The error is the message for the runtime, one line.
pub(crate) fn read(path: &Path) -> Result<SubnetEnv, String> {
    let text = fs::read_to_string(path).map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        let why = if missing { "no such file or directory".to_owned() } else { error.to_string() };
        format!("open {}: {why}", path.display())
    })?;
    parse(&text).map_err(|error| match error {
        ParseError::Value(why) => why,
        ParseError::Missing(keys) => format!("{} is missing {}", path.display(), keys.join(", ")),
        ParseError::NoValue(line) => format!("{} has no value in its line {line}", path.display()),
    })
}

#[derive(Debug, Eq, PartialEq)]
enum ParseError {
    Value(String),
    /// The missing keys.
    Missing(Vec<&'static str>),
    /// The number of the line, from 1.
    NoValue(usize),
}

fn parse(text: &str) -> Result<SubnetEnv, ParseError> {
    let mut values: [Option<&str>; KEYS.len()] = Default::default();
    for (line, text) in text.lines().enumerate() {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if let Some(i) = KEYS.iter().position(|expected| *expected == key) {
            values[i] = Some(value.ok_or(ParseError::NoValue(line + 1))?);
        }
    }
    let [network, ipv6_network, subnet, ipv6_subnet, mtu, ip_masq] = values;
    let networks =
        [network, ipv6_network].into_iter().flatten().map(nets).collect::<Result<Vec<_>, _>>()?.concat();
    let subnets = [subnet, ipv6_subnet].into_iter().flatten().map(net).collect::<Result<Vec<_>, _>>()?;
    let mtu = mtu.map(number).transpose()?;

    let absent = [
        networks.is_empty(),
        networks.is_empty(),
        subnets.is_empty(),
        subnets.is_empty(),
        mtu.is_none(),
        ip_masq.is_none(),
    ];
    let missing: Vec<_> =
        KEYS.into_iter().zip(absent).filter(|(_, absent)| *absent).map(|(key, _)| key).collect();
    let (Some(mtu), Some(ip_masq), true) = (mtu, ip_masq, missing.is_empty()) else {
        return Err(ParseError::Missing(missing));
    };
    Ok(SubnetEnv { networks, subnets, mtu, ip_masq: ip_masq == "true" })
}

/// Parses a list of networks and drops duplicates.
fn nets(list: &str) -> Result<Vec<IpNet>, ParseError> {
    let mut nets = Vec::new();
    for text in list.split(',') {
        let net = net(text)?;
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    Ok(nets)
}

fn net(text: &str) -> Result<IpNet, ParseError> {
    let net: IpNet = text.parse().map_err(|_| ParseError::Value(format!("invalid CIDR address: {text}")))?;
    Ok(net.trunc())
}

fn number(text: &str) -> Result<u32, ParseError> {
    let invalid = |why| ParseError::Value(format!("FLANNEL_MTU {text:?} {why}"));
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid("is not a whole number"));
    }
    text.parse().map_err(|_| invalid("is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn a_dual_stack_file_is_read_ipv4_first() {
        let text =
            format!("FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\n# words\n{WHOLE}");
        let read = parse(&text).unwrap();
        assert_eq!(read.networks, ["10.244.0.0/16".parse().unwrap(), "fc00::/48".parse().unwrap()]);
        assert_eq!(read.subnets, ["10.244.1.0/24".parse().unwrap(), "fc00:0:0:1::/64".parse().unwrap()]);
        assert_eq!((read.mtu, read.ip_masq), (1450, true));
    }

    #[test]
    fn networks_are_a_list_and_the_last_line_of_a_key_wins() {
        let text =
            format!("{WHOLE}FLANNEL_NETWORK=10.1.2.3/16,10.2.0.0/16,10.1.0.0/16\nFLANNEL_IPMASQ=yes\n");
        let read = parse(&text).unwrap();
        assert_eq!(read.networks, ["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()]);
        assert!(!read.ip_masq);
    }

    #[test]
    fn an_error_names_what_is_missing_or_invalid() {
        let missing = |keys: &[&'static str]| ParseError::Missing(keys.to_vec());
        let value = |why: &str| ParseError::Value(why.to_owned());
        let without = |key: &str| {
            WHOLE
                .lines()
                .filter(|line| !line.starts_with(key))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        for (text, error) in [
            (String::new(), missing(&KEYS)),
            (without("FLANNEL_NETWORK"), missing(&["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"])),
            (without("FLANNEL_IPMASQ"), missing(&["FLANNEL_IPMASQ"])),
            (format!("{WHOLE}FLANNEL_MTU\n"), ParseError::NoValue(5)),
            (
                format!("{WHOLE}FLANNEL_SUBNET=\"10.244.1.1/24\"\n"),
                value("invalid CIDR address: \"10.244.1.1/24\""),
            ),
            (
                format!("{WHOLE}FLANNEL_NETWORK=10.1.0.0/16, 10.2.0.0/16\n"),
                value("invalid CIDR address:  10.2.0.0/16"),
            ),
            (format!("{WHOLE}FLANNEL_MTU=-1\n"), value("FLANNEL_MTU \"-1\" is not a whole number")),
            (format!("{WHOLE}FLANNEL_MTU=4294967296\n"), value("FLANNEL_MTU \"4294967296\" is out of range")),
        ] {
            assert_eq!(parse(&text), Err(error), "{text}");
        }
    }
}
