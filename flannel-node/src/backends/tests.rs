use flannel_backend_extension::{OpenAlloc, OpenExtension};
use flannel_backend_host_gw::OpenHostGw;
use flannel_backend_udp::OpenUdp;
use flannel_backend_vxlan::OpenVxlan;
use flannel_core::ExternalInterface;
use flannel_netlink::Namespace;

use super::*;

const PAGE: &str = include_str!("../../../docs/configuration.md");

fn all() -> BackendRegistry {
    let namespace = Namespace::current().expect("the namespace");
    BackendRegistry::new()
        .with(OpenVxlan::new(namespace.clone()))
        .with(OpenHostGw::new(namespace.clone()))
        .with(OpenUdp::new(namespace.clone()))
        .with(OpenExtension::new(namespace))
        .with(OpenAlloc)
}

/// The members that the page lists below a heading.
fn documented_options(heading: &str) -> Vec<&'static str> {
    let (_, part) = PAGE.split_once(&format!("# {heading}\n")).expect("the heading");
    let part = part.split("\n#").next().unwrap_or_default();
    part.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect()
}

#[test]
fn the_configuration_page_documents_every_backend_and_its_options() {
    let backends = all();
    let documented: Vec<_> = PAGE.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(backends.names().collect::<Vec<_>>(), documented);
    for backend in backends.iter() {
        let (mut documented, mut read) = (documented_options(backend.name()), backend.options().to_vec());
        documented.sort_unstable();
        read.sort_unstable();
        assert_eq!(documented, read, "{}", backend.name());
    }
    assert_eq!(documented_options("The backend"), ["Type"]);
}

#[test]
fn every_documented_configuration_is_valid() {
    let shown: Vec<&str> =
        PAGE.split("```json\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert!(shown.len() >= 2);
    for text in shown {
        assert!(NetworkConfig::parse(text).is_ok(), "{text}");
    }
}

#[test]
fn every_documented_option_is_read() {
    for member in documented_options("The network") {
        let text = format!(
            r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","{member}":[]}}"#
        );
        let error = NetworkConfig::parse(&text).expect_err(member);
        assert_eq!(error.field(), Some(member), "{error}");
    }
    let v4 = std::net::Ipv4Addr::new(192, 168, 64, 1);
    let external = ExternalInterface::new("lo", 1, 1500, v4);
    let backends = all();
    for backend in backends.iter() {
        for option in backend.options() {
            let name = backend.name();
            let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{name}","{option}":[]}}}}"#);
            let config = NetworkConfig::parse(&text).expect("the backend reads it");
            let request = OpenRequest::new(&config, &external);
            let Err(BackendError::Config { reason, .. }) = backends.open(request) else {
                panic!("{option} of {name} is not read");
            };
            assert!(reason.contains(&format!("into {option},")), "{reason}");
        }
    }
}

#[test]
fn a_tunnel_port_is_the_configured_one_or_the_default() {
    let backends = all();
    let ports = |backend: &str| {
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
        let ports = backends.tunnel_ports(&NetworkConfig::parse(&text).expect("valid"));
        ports.iter().map(|port| port.port).collect::<Vec<_>>()
    };
    assert_eq!(ports(r#"{"Type":"vxlan"}"#), [8472]);
    assert_eq!(ports(r#"{"Type":"VXLAN","port":4789}"#), [4789]);
    assert_eq!(ports(r#"{"Type":"vxlan","Port":0}"#), [8472]);
    assert_eq!(ports(r#"{"Type":"vxlan","Port":"x","VNI":[]}"#), [8472], "wrong options count as not given");
    assert_eq!(ports(r#"{"Type":"udp"}"#), [8285]);
    assert_eq!(ports(r#"{"Type":"host-gw"}"#), [0_u16; 0]);
    let defaults: Vec<_> =
        backends.names().flat_map(|name| backends.default_ports(name)).map(|port| port.port).collect();
    assert_eq!(defaults, [8472, 8285]);
}

#[test]
fn the_last_backend_of_a_name_counts() {
    let namespace = Namespace::current().expect("the namespace");
    let backends = all().with(OpenHostGw::new(namespace));
    assert_eq!(backends.names().filter(|name| *name == "host-gw").count(), 1);
    assert!(backends.find("Host-GW").is_some() && backends.find("wireguard").is_none());
}
