//! What the plugin does for each verb.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize as _;
use serde_json::{Map, Value};

use crate::delegate;
use crate::error::CniError;
use crate::netconf::{NetConf, VALID_ATTACHMENTS};
use crate::plugin::Run;
use crate::request::{Parameters, Verb};
use crate::state::{State, States};
use crate::subnet_env;

/// Does what is asked for and returns what belongs on standard output.
pub(crate) fn run(verb: Verb, parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    match verb {
        Verb::Add => add(parameters, conf),
        Verb::Del => del(parameters, conf),
        Verb::Check => check(parameters, conf),
        Verb::Status => status(parameters, conf),
        Verb::Gc => gc(parameters, conf),
    }
}

/// Attaches a container.
fn add(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    refuse_own_namespace(parameters)?;
    let configuration = configuration(conf)?;
    let bytes = delegate::bytes(&configuration);
    // First, so that DEL finds it whatever becomes of the delegate.
    States::of(conf)?.save(&parameters.container_id, &parameters.ifname, &bytes)?;
    let result = delegated(Verb::Add, parameters, &kind(&configuration), &bytes)?;
    with_version(result, &conf.version)
}

/// Detaches a container. One that is not attached is a success.
fn del(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    refuse_own_namespace(parameters)?;
    let states = States::of(conf)?;
    if let Some(state) = states.find(&parameters.container_id, &parameters.ifname)? {
        forget(&states, &state, parameters, conf)?;
    }
    Ok(Vec::new())
}

/// Looks whether a container is attached as it was.
fn check(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let Parameters { container_id, ifname, .. } = parameters;
    let unknown = || {
        CniError::unknown_container(format!(
            "container {container_id} has no {ifname} in network {}",
            conf.name
        ))
    };
    let state = States::of(conf)?.find(container_id, ifname)?.ok_or_else(unknown)?;
    let (kind, mut configuration) = state.configuration().ok_or_else(unknown)?;
    if let Some(mut result) = conf.previous_result()? {
        name_gateways(&mut result);
        configuration.insert("prevResult".to_owned(), result);
    }
    delegated(Verb::Check, parameters, &kind, &delegate::bytes(&configuration))?;
    Ok(Vec::new())
}

/// Gives routes without a gateway that of the address of their family: so the reference plugins set them, but CHECK of
/// theirs looks for exactly what the result says.
fn name_gateways(result: &mut Value) {
    let is_v6 = |text: &str| text.contains(':');
    let addresses = result.get("ips").and_then(Value::as_array).cloned().unwrap_or_default();
    let gateways = addresses.iter().filter_map(|address| address.get("gateway")?.as_str());
    let gateways: Vec<_> = gateways.collect();
    for route in result.get_mut("routes").and_then(Value::as_array_mut).into_iter().flatten() {
        let family = route.get("dst").and_then(Value::as_str).map(is_v6);
        let gateway = gateways.iter().find(|gateway| Some(is_v6(gateway)) == family);
        if let (Some(route), Some(gateway)) = (route.as_object_mut(), gateway) {
            route.entry("gw").or_insert((*gateway).into());
        }
    }
}

/// Tells whether a container could be attached now.
fn status(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let unavailable = |error: CniError| CniError::unavailable(error.msg).with_details(error.details);
    let configuration = configuration(conf).map_err(unavailable)?;
    match delegated(Verb::Status, parameters, &kind(&configuration), &delegate::bytes(&configuration)) {
        Err(error) if !error.is_not_understood() => Err(error),
        _ => Ok(Vec::new()),
    }
}

/// Detaches all containers of this network that the runtime does not list.
fn gc(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let states = States::of(conf)?;
    let valid = conf.valid_attachments()?;
    let mut outcome = Ok(());
    for state in states.all()? {
        let attachment = (state.container_id.clone(), state.ifname.clone());
        if valid.attachments.contains(&attachment) {
            continue;
        }
        let of_container = Parameters {
            container_id: attachment.0,
            ifname: attachment.1,
            netns: PathBuf::new(),
            ..parameters.clone()
        };
        // One that fails does not keep the others; the first error is told.
        let forgotten = forget(&states, &state, &of_container, conf);
        outcome = outcome.and(forgotten);
    }
    outcome?;
    // Without a lease there is no delegate to ask.
    let Ok(mut configuration) = configuration(conf) else { return Ok(Vec::new()) };
    if let Some(given) = valid.given {
        configuration.insert(VALID_ATTACHMENTS.to_owned(), given.into());
    }
    match delegated(Verb::Gc, parameters, &kind(&configuration), &delegate::bytes(&configuration)) {
        Err(error) if !error.is_not_understood() => Err(error),
        _ => Ok(Vec::new()),
    }
}

/// Lets the delegate detach a container with the configuration that it was attached with, and only then forgets it: a
/// DEL that failed can be asked for again.
fn forget(states: &States, state: &State, parameters: &Parameters, conf: &NetConf) -> Result<(), CniError> {
    if let Some((kind, _)) = state.configuration() {
        delegated(Verb::Del, parameters, &kind, &state.bytes)?;
        return states.remove(state);
    }
    // The file is not what was written. What would be written today leads to the same addresses.
    match configuration(conf) {
        Ok(configuration) => {
            delegated(Verb::Del, parameters, &kind(&configuration), &delegate::bytes(&configuration))?;
            states.remove(state)
        }
        Err(error) => {
            let words =
                format!("flannel: the state of {} cannot be read, and {}\n", state.container_id, error.msg);
            // There is nobody else to tell.
            let _ = io::stderr().write_all(words.as_bytes());
            Ok(())
        }
    }
}

/// The delegate's configuration on this host now.
fn configuration(conf: &NetConf) -> Result<Map<String, Value>, CniError> {
    let env = subnet_env::read(&conf.files()?.subnet_file).map_err(|why| {
        CniError::plugin(format!(
            "failed to load flannel 'subnet.env' file: {why}. Check the flannel pod log for this node."
        ))
    })?;
    delegate::configuration(conf, &env)
}

fn kind(configuration: &Map<String, Value>) -> String {
    configuration.get("type").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn delegated(verb: Verb, parameters: &Parameters, kind: &str, input: &[u8]) -> Result<Vec<u8>, CniError> {
    Run { kind, verb, parameters, input }.output()
}

/// The delegate's result as it is, or with the version that it was asked for if it names none.
fn with_version(result: Vec<u8>, version: &str) -> Result<Vec<u8>, CniError> {
    let unreadable = |error: serde_json::Error| {
        CniError::plugin(format!("failed to delegate add: the result is not JSON: {error}"))
    };
    let mut object: Map<String, Value> = serde_json::from_slice(&result).map_err(unreadable)?;
    let named = object.get("cniVersion").and_then(Value::as_str).is_some_and(|named| !named.is_empty());
    if named || version.is_empty() {
        return Ok(result.trim_ascii().to_vec());
    }
    object.insert("cniVersion".to_owned(), version.into());
    let mut text = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    object.serialize(&mut serde_json::Serializer::with_formatter(&mut text, indented)).map_err(unreadable)?;
    Ok(text)
}

/// A container that shares the namespace of the host must not have the host's interfaces changed. The check comes before
/// anything is done.
fn refuse_own_namespace(parameters: &Parameters) -> Result<(), CniError> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let theirs = identity(&parameters.netns);
    if theirs.is_some() && theirs == identity(Path::new("/proc/self/ns/net")) && !parameters.netns_override {
        return Err(CniError::own_netns());
    }
    Ok(())
}
