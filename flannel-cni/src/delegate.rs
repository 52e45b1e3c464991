//! The configuration of the delegate, derived from the plugin's own and from the host's `subnet.env`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::error::CniError;
use crate::netconf::{DelegateMembers, NetConf};
use crate::subnet_env::SubnetEnv;

/// The default delegate.
const BRIDGE: &str = "bridge";

/// The default IPAM plugin.
const HOST_LOCAL: &str = "host-local";

/// Returns the delegate's configuration. Members that the user sets take precedence, except `name` and `ipam`.
pub(crate) fn configuration(conf: &NetConf, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    let DelegateMembers { mut delegate, ipam, runtime_config } = conf.delegate_members()?;
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return Err(CniError::plugin("'delegate' dictionary, if present, must have (string) 'type' field"));
    }
    for reserved in ["name", "ipam"] {
        if delegate.contains_key(reserved) {
            let wrong =
                format!("'delegate' dictionary must not have '{reserved}' field, it'll be set by flannel");
            return Err(CniError::plugin(wrong));
        }
    }
    let mut set_default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    set_default("type", BRIDGE.into());
    // Either the daemon or the delegate masquerades.
    set_default("ipMasq", (!env.ip_masq).into());
    set_default("mtu", env.mtu.into());
    if delegate.get("type").is_some_and(|kind| kind == BRIDGE) {
        delegate.entry("isGateway").or_insert(true.into());
    }
    delegate.insert("name".to_owned(), conf.name().into());
    if !conf.version().is_empty() {
        delegate.insert("cniVersion".to_owned(), conf.version().into());
    }
    if let Some(runtime_config) = runtime_config {
        delegate.insert("runtimeConfig".to_owned(), runtime_config.into());
    }
    delegate.insert("ipam".to_owned(), ipam_configuration(ipam, env)?.into());
    Ok(delegate)
}

/// Returns the `ipam` member: ranges are this host's subnets, and routes lead to the cluster's networks.
fn ipam_configuration(mut ipam: Map<String, Value>, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    ipam.entry("type").or_insert(HOST_LOCAL.into());
    let ranges: Vec<_> = env.subnets.iter().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
    ipam.insert("ranges".to_owned(), ranges.into());
    let mut routes = user_routes(ipam.get("routes")).map_err(|why| {
        CniError::plugin(format!(
            "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: {why}"
        ))
    })?;
    routes.extend(env.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".to_owned(), routes.into());
    Ok(ipam)
}

/// Checks and returns the routes that the user set.
fn user_routes(routes: Option<&Value>) -> Result<Vec<Value>, String> {
    let routes = match routes {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(routes) => routes.as_array().ok_or_else(|| format!("{routes} is not a list"))?,
    };
    for route in routes {
        let string = |key: &str| route.get(key).and_then(Value::as_str);
        if string("dst").and_then(|dst| dst.parse::<IpNet>().ok()).is_none() {
            return Err(format!("{route} has no dst that is a network, such as \"10.0.0.0/8\""));
        }
        if route.get("gw").is_some() && string("gw").and_then(|gw| gw.parse::<IpAddr>().ok()).is_none() {
            return Err(format!("{route} has a gw that is not an address"));
        }
    }
    Ok(routes.clone())
}

/// Returns a configuration as Go's `encoding/json` writes it, and upstream's plugin with it: compact, members sorted, and
/// characters escaped that are special in HTML.
pub(crate) fn bytes(configuration: &Map<String, Value>) -> Vec<u8> {
    let mut text = String::new();
    // None of these occurs outside of a string.
    for c in Value::Object(configuration.clone()).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => text += &format!("\\u{:04x}", u32::from(c)),
            _ => text.push(c),
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(ip_masq: bool) -> SubnetEnv {
        SubnetEnv {
            networks: vec!["10.244.0.0/16".parse().unwrap()],
            subnets: vec!["10.244.1.0/24".parse().unwrap()],
            mtu: 1450,
            ip_masq,
        }
    }

    fn configured(conf: &str, env: &SubnetEnv) -> Result<String, CniError> {
        let conf = NetConf::parse(conf.as_bytes()).unwrap();
        configuration(&conf, env).map(|object| String::from_utf8(bytes(&object)).unwrap())
    }

    #[test]
    fn a_typical_configuration_yields_a_bridge() {
        let conf = r#"{"cniVersion":"0.3.1","delegate":{"hairpinMode":true,"isDefaultGateway":true},"name":"cbr0","type":"flannel"}"#;
        let expected = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
        assert_eq!(configured(conf, &env(true)).unwrap(), expected);
    }

    #[test]
    fn the_name_is_the_only_required_member() {
        let expected = r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1450,"name":"n","type":"bridge"}"#;
        assert_eq!(configured(r#"{"name":"n","type":"flannel"}"#, &env(false)).unwrap(), expected);
    }

    #[test]
    fn members_of_the_user_take_precedence() {
        let mut env = env(true);
        env.networks.push("fc00::/48".parse().unwrap());
        env.subnets.push("fc00:0:0:1::/64".parse().unwrap());
        let conf = r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"aa:bb:cc:dd:ee:ff"},
            "delegate":{"mtu":1400,"ipMasq":true,"isGateway":false,"cniVersion":"0.1.0"},
            "ipam":{"type":"my","x":9007199254740993,"ranges":[],"routes":[{"dst":"1.2.3.0/24","gw":"10.244.1.9"}]}}"#;
        let expected = r#"{"cniVersion":"1.0.0","ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fc00:0:0:1::/64"}]],"routes":[{"dst":"1.2.3.0/24","gw":"10.244.1.9"},{"dst":"10.244.0.0/16"},{"dst":"fc00::/48"}],"type":"my","x":9007199254740993},"isGateway":false,"mtu":1400,"name":"n","runtimeConfig":{"mac":"aa:bb:cc:dd:ee:ff"},"type":"bridge"}"#;
        assert_eq!(configured(conf, &env).unwrap(), expected);
    }

    #[test]
    fn a_delegate_other_than_bridge_gets_no_gateway_member_and_html_is_escaped() {
        let text =
            configured(r#"{"name":"n","delegate":{"type":"ptp","note":"<a&b>"}}"#, &env(true)).unwrap();
        assert!(!text.contains("isGateway"), "{text}");
        assert!(text.contains(r#""note":"\u003ca\u0026b\u003e""#), "{text}");
    }

    #[test]
    fn an_invalid_member_is_named_in_the_error() {
        for (members, expected) in [
            (r#""delegate":{"type":7}"#, "must have (string) 'type' field"),
            (r#""delegate":{"name":"x"}"#, "must not have 'name' field, it'll be set by flannel"),
            (r#""delegate":{"ipam":{}}"#, "must not have 'ipam' field, it'll be set by flannel"),
            (r#""delegate":"bridge""#, "failed to load netconf: json: delegate must be an object"),
            (r#""runtimeConfig":[1]"#, "failed to load netconf: json: runtimeConfig must be an object"),
            (
                r#""ipam":{"routes":[{"dst":"nowhere"}]}"#,
                "failed to parse ipam.routes: {\"dst\":\"nowhere\"} has no dst",
            ),
            (r#""ipam":{"routes":{}}"#, "failed to parse ipam.routes: {} is not a list"),
            (r#""ipam":{"routes":[{"dst":"1.0.0.0/8","gw":1}]}"#, "has a gw that is not an address"),
        ] {
            let error = configured(&format!(r#"{{"name":"n",{members}}}"#), &env(true)).unwrap_err();
            assert_eq!(error.code, 999);
            assert!(error.msg.contains(expected), "{members}: {}", error.msg);
        }
    }
}
