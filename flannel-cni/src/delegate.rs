//! The configuration of the plugin that does the work, made from ours and from the lease of the host.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::error::CniError;
use crate::netconf::{NetConf, Parts};
use crate::subnet_env::SubnetEnv;

/// The plugin that is run if the configuration names none.
const BRIDGE: &str = "bridge";

/// The address manager that is used if the configuration names none.
const HOST_LOCAL: &str = "host-local";

/// Makes the delegate's configuration. What the user says of the delegate stands, but for its name and its addresses.
pub(crate) fn configuration(conf: &NetConf, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    let Parts { mut delegate, ipam, runtime_config } = conf.parts()?;
    if delegate.get("type").is_some_and(|kind| !kind.is_string()) {
        return Err(CniError::plugin("'delegate' dictionary, if present, must have (string) 'type' field"));
    }
    for ours in ["name", "ipam"] {
        if delegate.contains_key(ours) {
            let wrong =
                format!("'delegate' dictionary must not have '{ours}' field, it'll be set by flannel");
            return Err(CniError::plugin(wrong));
        }
    }
    let mut usually = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    usually("type", BRIDGE.into());
    // Who masquerades: the daemon or the delegate, never both.
    usually("ipMasq", (!env.ip_masq).into());
    usually("mtu", env.mtu.into());
    if delegate.get("type").is_some_and(|kind| kind == BRIDGE) {
        delegate.entry("isGateway").or_insert(true.into());
    }
    delegate.insert("name".to_owned(), conf.name.clone().into());
    if !conf.version.is_empty() {
        delegate.insert("cniVersion".to_owned(), conf.version.clone().into());
    }
    if let Some(runtime_config) = runtime_config {
        delegate.insert("runtimeConfig".to_owned(), runtime_config.into());
    }
    delegate.insert("ipam".to_owned(), address_manager(ipam, env)?.into());
    Ok(delegate)
}

/// The `ipam` part: addresses from the subnets of this host, and routes to the networks of all hosts.
fn address_manager(mut ipam: Map<String, Value>, env: &SubnetEnv) -> Result<Map<String, Value>, CniError> {
    ipam.entry("type").or_insert(HOST_LOCAL.into());
    let ranges: Vec<_> = env.subnets.iter().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
    ipam.insert("ranges".to_owned(), ranges.into());
    let mut routes = given_routes(ipam.get("routes")).map_err(|why| {
        CniError::plugin(format!(
            "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: {why}"
        ))
    })?;
    routes.extend(env.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".to_owned(), routes.into());
    Ok(ipam)
}

/// The routes of the user, which come first.
fn given_routes(given: Option<&Value>) -> Result<Vec<Value>, String> {
    let routes = match given {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(given) => given.as_array().ok_or_else(|| format!("{given} is not a list"))?,
    };
    for route in routes {
        let word = |key: &str| route.get(key).and_then(Value::as_str);
        if word("dst").and_then(|dst| dst.parse::<IpNet>().ok()).is_none() {
            return Err(format!("{route} has no dst that is a network, such as \"10.0.0.0/8\""));
        }
        if route.get("gw").is_some() && word("gw").and_then(|gw| gw.parse::<IpAddr>().ok()).is_none() {
            return Err(format!("{route} has a gw that is not an address"));
        }
    }
    Ok(routes.clone())
}

/// The bytes of a configuration: without blanks, members in order, and what HTML could misread escaped. These are the
/// bytes that flannel has always handed on and kept.
pub(crate) fn bytes(configuration: &Map<String, Value>) -> Vec<u8> {
    let mut text = String::new();
    // Outside of strings none of these occur.
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

    fn made(conf: &str, env: &SubnetEnv) -> Result<String, CniError> {
        let conf = NetConf::parse(conf.as_bytes()).unwrap();
        configuration(&conf, env).map(|made| String::from_utf8(bytes(&made)).unwrap())
    }

    #[test]
    fn the_usual_configuration_becomes_a_bridge() {
        let conf = r#"{"cniVersion":"0.3.1","delegate":{"hairpinMode":true,"isDefaultGateway":true},"name":"cbr0","type":"flannel"}"#;
        let expected = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
        assert_eq!(made(conf, &env(true)).unwrap(), expected);
    }

    #[test]
    fn the_smallest_configuration_is_enough() {
        let expected = r#"{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1450,"name":"n","type":"bridge"}"#;
        assert_eq!(made(r#"{"name":"n","type":"flannel"}"#, &env(false)).unwrap(), expected);
    }

    #[test]
    fn what_the_user_says_of_the_delegate_stands() {
        let mut env = env(true);
        env.networks.push("fc00::/48".parse().unwrap());
        env.subnets.push("fc00:0:0:1::/64".parse().unwrap());
        let conf = r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"aa:bb:cc:dd:ee:ff"},
            "delegate":{"mtu":1400,"ipMasq":true,"isGateway":false,"cniVersion":"0.1.0"},
            "ipam":{"type":"my","x":9007199254740993,"ranges":[],"routes":[{"dst":"1.2.3.0/24","gw":"10.244.1.9"}]}}"#;
        let expected = r#"{"cniVersion":"1.0.0","ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fc00:0:0:1::/64"}]],"routes":[{"dst":"1.2.3.0/24","gw":"10.244.1.9"},{"dst":"10.244.0.0/16"},{"dst":"fc00::/48"}],"type":"my","x":9007199254740993},"isGateway":false,"mtu":1400,"name":"n","runtimeConfig":{"mac":"aa:bb:cc:dd:ee:ff"},"type":"bridge"}"#;
        assert_eq!(made(conf, &env).unwrap(), expected);
    }

    #[test]
    fn another_delegate_is_not_told_to_be_a_gateway_and_its_words_are_escaped() {
        let made = made(r#"{"name":"n","delegate":{"type":"ptp","note":"<a&b>"}}"#, &env(true)).unwrap();
        assert!(!made.contains("isGateway"), "{made}");
        assert!(made.contains(r#""note":"\u003ca\u0026b\u003e""#), "{made}");
    }

    #[test]
    fn what_is_wrong_with_the_delegate_is_named() {
        for (parts, word) in [
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
            let error = made(&format!(r#"{{"name":"n",{parts}}}"#), &env(true)).unwrap_err();
            assert_eq!(error.code, 999);
            assert!(error.msg.contains(word), "{parts}: {}", error.msg);
        }
    }
}
