//! The operations of the protocol on a network configuration.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize as _;
use serde_json::{Map, Value};

use crate::delegate;
use crate::error::CniError;
use crate::netconf::{NetConf, VALID_ATTACHMENTS};
use crate::parameters::{Operation, Parameters};
use crate::plugin::PluginRun;
use crate::state::{AttachmentState, AttachmentStore};
use crate::subnet_env;

/// Runs an operation and returns what the plugin prints.
pub(crate) fn run(
    operation: Operation,
    parameters: &Parameters,
    conf: &NetConf,
) -> Result<Vec<u8>, CniError> {
    match operation {
        Operation::Add => add(parameters, conf),
        Operation::Del => del(parameters, conf),
        Operation::Check => check(parameters, conf),
        Operation::Status => status(parameters, conf),
        Operation::Gc => gc(parameters, conf),
    }
}

/// Attaches a container.
fn add(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    refuse_own_namespace(parameters)?;
    let configuration = configuration(conf)?;
    let bytes = delegate::bytes(&configuration);
    // Saved first, so that DEL can clean up after a delegate that fails.
    AttachmentStore::new(conf)?.save(&parameters.container_id, &parameters.ifname, &bytes)?;
    let result = delegated(Operation::Add, parameters, &kind(&configuration), &bytes)?;
    with_version(result, conf.version())
}

/// Detaches a container. Succeeds if it is not attached.
fn del(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    refuse_own_namespace(parameters)?;
    let store = AttachmentStore::new(conf)?;
    if let Some(state) = store.find(&parameters.container_id, &parameters.ifname)? {
        detach(&store, &state, parameters, conf)?;
    }
    Ok(Vec::new())
}

/// Checks that a container is attached as ADD left it.
fn check(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let Parameters { container_id, ifname, .. } = parameters;
    let unknown = || {
        CniError::unknown_container(format!(
            "container {container_id} has no {ifname} in network {}",
            conf.name()
        ))
    };
    let state = AttachmentStore::new(conf)?.find(container_id, ifname)?.ok_or_else(unknown)?;
    let (kind, mut configuration) = state.configuration().ok_or_else(unknown)?;
    if let Some(mut result) = conf.previous_result()? {
        add_gateways(&mut result);
        configuration.insert("prevResult".to_owned(), result);
    }
    delegated(Operation::Check, parameters, &kind, &delegate::bytes(&configuration))?;
    Ok(Vec::new())
}

/// Adds to routes without a gateway that of the address of their family. The reference plugins install the routes with it,
/// but their CHECK looks for the routes exactly as the result lists them.
fn add_gateways(result: &mut Value) {
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

/// Checks that a container could be attached now.
fn status(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let unavailable = |error: CniError| CniError::unavailable(error.msg).with_details(error.details);
    let configuration = configuration(conf).map_err(unavailable)?;
    match delegated(Operation::Status, parameters, &kind(&configuration), &delegate::bytes(&configuration)) {
        Err(error) if !error.is_unsupported() => Err(error),
        _ => Ok(Vec::new()),
    }
}

/// Detaches every container of this network that the runtime does not list.
fn gc(parameters: &Parameters, conf: &NetConf) -> Result<Vec<u8>, CniError> {
    let store = AttachmentStore::new(conf)?;
    let valid = conf.valid_attachments()?;
    let mut outcome = Ok(());
    for state in store.all()? {
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
        // A failure does not keep the others; the first error is returned.
        let detached = detach(&store, &state, &of_container, conf);
        outcome = outcome.and(detached);
    }
    outcome?;
    // Without a lease the delegate has no configuration.
    let Ok(mut configuration) = configuration(conf) else { return Ok(Vec::new()) };
    if let Some(raw) = valid.raw {
        configuration.insert(VALID_ATTACHMENTS.to_owned(), raw.into());
    }
    match delegated(Operation::Gc, parameters, &kind(&configuration), &delegate::bytes(&configuration)) {
        Err(error) if !error.is_unsupported() => Err(error),
        _ => Ok(Vec::new()),
    }
}

/// Runs the delegate's DEL with the configuration that the container was attached with. Removes the state only if that
/// succeeds, so that the runtime can repeat a DEL that failed.
fn detach(
    store: &AttachmentStore,
    state: &AttachmentState,
    parameters: &Parameters,
    conf: &NetConf,
) -> Result<(), CniError> {
    if let Some((kind, _)) = state.configuration() {
        delegated(Operation::Del, parameters, &kind, &state.bytes)?;
        return store.remove(state);
    }
    // The state is damaged. The current configuration leads to the same addresses.
    match configuration(conf) {
        Ok(configuration) => {
            delegated(Operation::Del, parameters, &kind(&configuration), &delegate::bytes(&configuration))?;
            store.remove(state)
        }
        Err(error) => {
            let warning = format!(
                "flannel: the state of {} is damaged; nothing is removed: {}\n",
                state.container_id, error.msg
            );
            // Not an error: the runtime would repeat the DEL for ever.
            let _ = io::stderr().write_all(warning.as_bytes());
            Ok(())
        }
    }
}

/// Returns the delegate's configuration with the current lease of this host.
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

fn delegated(
    operation: Operation,
    parameters: &Parameters,
    kind: &str,
    input: &[u8],
) -> Result<Vec<u8>, CniError> {
    PluginRun { kind, operation, parameters, input }.output()
}

/// Returns the delegate's result, with the requested `cniVersion` added if it has none.
fn with_version(result: Vec<u8>, version: &str) -> Result<Vec<u8>, CniError> {
    let invalid = |error: serde_json::Error| {
        CniError::plugin(format!("failed to delegate add: the result is not JSON: {error}"))
    };
    let mut object: Map<String, Value> = serde_json::from_slice(&result).map_err(invalid)?;
    let has_version =
        object.get("cniVersion").and_then(Value::as_str).is_some_and(|version| !version.is_empty());
    if has_version || version.is_empty() {
        return Ok(result.trim_ascii().to_vec());
    }
    object.insert("cniVersion".to_owned(), version.into());
    let mut text = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    object.serialize(&mut serde_json::Serializer::with_formatter(&mut text, indented)).map_err(invalid)?;
    Ok(text)
}

/// Fails if the container shares the host's namespace, whose interfaces the plugin must not change.
fn refuse_own_namespace(parameters: &Parameters) -> Result<(), CniError> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let container = identity(&parameters.netns);
    if container.is_some()
        && container == identity(Path::new("/proc/thread-self/ns/net"))
        && !parameters.netns_override
    {
        return Err(CniError::own_netns());
    }
    Ok(())
}
