//! The file in which flanneld says which subnet the host has, as this plugin reads it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use ipnet::IpNet;

/// What the file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct SubnetEnv {
    /// The networks of the whole cluster, IPv4 first.
    pub(crate) networks: Vec<IpNet>,
    /// The subnets of this host, IPv4 first.
    pub(crate) subnets: Vec<IpNet>,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Whether the daemon masquerades.
    pub(crate) ip_masq: bool,
}

/// The keys, in the order in which missing ones are listed.
const KEYS: [&str; 6] = [
    "FLANNEL_NETWORK",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_SUBNET",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_IPMASQ",
];

/// Reads the file at `path`. The error is one line.
pub(crate) fn read(path: &Path) -> Result<SubnetEnv, String> {
    let text = fs::read_to_string(path).map_err(|error| {
        let missing = error.kind() == ErrorKind::NotFound;
        let why = if missing { "no such file or directory".to_owned() } else { error.to_string() };
        format!("open {}: {why}", path.display())
    })?;
    parse(&text).map_err(|wrong| match wrong {
        Wrong::Value(why) => why,
        Wrong::Missing(keys) => format!("{} is missing {}", path.display(), keys.join(", ")),
        Wrong::NoValue(line) => format!("{} has no value in its line {line}", path.display()),
    })
}

#[derive(Debug, Eq, PartialEq)]
enum Wrong {
    Value(String),
    Missing(Vec<&'static str>),
    NoValue(usize),
}

fn parse(text: &str) -> Result<SubnetEnv, Wrong> {
    let mut values: [Option<&str>; KEYS.len()] = Default::default();
    for (line, text) in text.lines().enumerate() {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if let Some(i) = KEYS.iter().position(|known| *known == key) {
            values[i] = Some(value.ok_or(Wrong::NoValue(line + 1))?);
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
        return Err(Wrong::Missing(missing));
    };
    Ok(SubnetEnv { networks, subnets, mtu, ip_masq: ip_masq == "true" })
}

/// Reads a list of networks, each of them once.
fn nets(list: &str) -> Result<Vec<IpNet>, Wrong> {
    let mut nets = Vec::new();
    for one in list.split(',') {
        let one = net(one)?;
        if !nets.contains(&one) {
            nets.push(one);
        }
    }
    Ok(nets)
}

fn net(text: &str) -> Result<IpNet, Wrong> {
    let net: IpNet = text.parse().map_err(|_| Wrong::Value(format!("invalid CIDR address: {text}")))?;
    Ok(net.trunc())
}

fn number(text: &str) -> Result<u32, Wrong> {
    let wrong = |why| Wrong::Value(format!("FLANNEL_MTU {text:?} {why}"));
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong("is not a whole number"));
    }
    text.parse().map_err(|_| wrong("is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_file_of_a_dual_stack_host_is_read_with_ipv4_first() {
        let text =
            format!("FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:1::1/64\n# words\n{WHOLE}");
        let read = parse(&text).unwrap();
        assert_eq!(read.networks, ["10.244.0.0/16".parse().unwrap(), "fc00::/48".parse().unwrap()]);
        assert_eq!(read.subnets, ["10.244.1.0/24".parse().unwrap(), "fc00:0:0:1::/64".parse().unwrap()]);
        assert_eq!((read.mtu, read.ip_masq), (1450, true));
    }

    #[test]
    fn networks_are_a_list_and_the_last_line_of_a_key_counts() {
        let text =
            format!("{WHOLE}FLANNEL_NETWORK=10.1.2.3/16,10.2.0.0/16,10.1.0.0/16\nFLANNEL_IPMASQ=yes\n");
        let read = parse(&text).unwrap();
        assert_eq!(read.networks, ["10.1.0.0/16".parse().unwrap(), "10.2.0.0/16".parse().unwrap()]);
        assert!(!read.ip_masq);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let missing = |keys: &[&'static str]| Wrong::Missing(keys.to_vec());
        let value = |why: &str| Wrong::Value(why.to_owned());
        let without = |key: &str| {
            WHOLE
                .lines()
                .filter(|line| !line.starts_with(key))
                .map(|line| format!("{line}\n"))
                .collect::<String>()
        };
        for (text, wrong) in [
            (String::new(), missing(&KEYS)),
            (without("FLANNEL_NETWORK"), missing(&["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"])),
            (without("FLANNEL_IPMASQ"), missing(&["FLANNEL_IPMASQ"])),
            (format!("{WHOLE}FLANNEL_MTU\n"), Wrong::NoValue(5)),
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
            assert_eq!(parse(&text), Err(wrong), "{text}");
        }
    }
}
