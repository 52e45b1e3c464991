//! The network configuration, which the runtime writes to the plugin's standard input.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flannel_core::json::{JsonError, Object};
use serde_json::{Map, Value};

use crate::error::CniError;
use crate::parameters::is_name;

/// The plugin's entry of a network configuration list, with the members that the runtime adds.
#[derive(Clone, Debug)]
pub struct NetConf {
    name: String,
    version: String,
    /// The whole text, because most members concern some operations only.
    text: String,
}

/// The files of the plugin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Files {
    /// Where flanneld writes `subnet.env`.
    pub subnet_file: PathBuf,
    /// The directory in which the plugin keeps the delegate's configuration of each attachment.
    pub data_dir: PathBuf,
}

/// The members from which the delegate's configuration is derived.
#[derive(Clone, Debug, Default)]
pub(crate) struct DelegateMembers {
    pub(crate) delegate: Map<String, Value>,
    pub(crate) ipam: Map<String, Value>,
    pub(crate) runtime_config: Option<Map<String, Value>>,
}

/// An attachment in the runtime's list: container ID and interface name.
pub(crate) type Attachment = (String, String);

/// The attachments that `GC` keeps.
#[derive(Clone, Debug)]
pub(crate) struct ValidAttachments {
    /// The list as the runtime wrote it, for the delegate.
    pub(crate) raw: Option<Vec<Value>>,
    pub(crate) attachments: BTreeSet<Attachment>,
}

const NAME: &str = "name";
const CNI_VERSION: &str = "cniVersion";
const SUBNET_FILE: &str = "subnetFile";
const DATA_DIR: &str = "dataDir";
const DELEGATE: &str = "delegate";
const IPAM: &str = "ipam";
const RUNTIME_CONFIG: &str = "runtimeConfig";
const PREV_RESULT: &str = "prevResult";
/// The runtime's list of attachments to keep (CNI specification, "GC").
pub(crate) const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// Every member of the configuration that the plugin reads.
pub const MEMBERS: [&str; 9] = [
    NAME,
    CNI_VERSION,
    SUBNET_FILE,
    DATA_DIR,
    DELEGATE,
    IPAM,
    RUNTIME_CONFIG,
    PREV_RESULT,
    VALID_ATTACHMENTS,
];

impl NetConf {
    /// Parses a configuration and checks the members that every operation needs.
    ///
    /// # Errors
    /// Fails with code 6 if `input` is not a JSON object or a member has an unexpected type, and with code 7 if the
    /// network's name is missing or invalid.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        let invalid = |why: &dyn std::fmt::Display| {
            CniError::not_json(format!("error unmarshall network config: {why}"))
        };
        let text = std::str::from_utf8(input).map_err(|error| invalid(&error))?;
        let object = Object::parse(text).map_err(|error| invalid(&error))?;
        let string =
            |member| object.string(member).map(Option::unwrap_or_default).map_err(|error| invalid(&error));
        let (name, version) = (string(NAME)?, string(CNI_VERSION)?);
        if name.is_empty() {
            return Err(CniError::config("missing network name"));
        }
        if !is_name(&name) {
            return Err(CniError::config("invalid characters found in network name").with_details(name));
        }
        Ok(Self { name, version, text: text.to_owned() })
    }

    /// Returns the network's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version of the protocol, empty if the configuration has none.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the paths of the plugin's files: as configured, or the defaults.
    ///
    /// # Errors
    /// Fails with code 999 if one of them is not a string.
    pub fn files(&self) -> Result<Files, CniError> {
        let object = self.object()?;
        let path = |member, default: &str| {
            let value = object.string(member).map_err(unexpected_type)?.filter(|path| !path.is_empty());
            Ok::<_, CniError>(PathBuf::from(value.unwrap_or_else(|| default.to_owned())))
        };
        Ok(Files {
            subnet_file: path(SUBNET_FILE, "/run/flannel/subnet.env")?,
            data_dir: path(DATA_DIR, "/var/lib/cni/flannel")?,
        })
    }

    pub(crate) fn delegate_members(&self) -> Result<DelegateMembers, CniError> {
        Ok(DelegateMembers {
            delegate: self.map(DELEGATE)?.unwrap_or_default(),
            ipam: self.map(IPAM)?.unwrap_or_default(),
            runtime_config: self.map(RUNTIME_CONFIG)?,
        })
    }

    /// Returns the result of the `ADD` that a `CHECK` is about.
    pub(crate) fn previous_result(&self) -> Result<Option<Value>, CniError> {
        Ok(self.map(PREV_RESULT)?.map(Value::Object))
    }

    /// Returns the attachments of this network that `GC` keeps.
    pub(crate) fn valid_attachments(&self) -> Result<ValidAttachments, CniError> {
        let value = self.object()?.raw(VALID_ATTACHMENTS).unwrap_or("null");
        let invalid = |why: String| CniError::config(format!("{VALID_ATTACHMENTS}: {why}"));
        let list: Option<Vec<Map<String, Value>>> =
            serde_json::from_str(value).map_err(|error| invalid(error.to_string()))?;
        let mut attachments = BTreeSet::new();
        for attachment in list.iter().flatten() {
            let string = |key: &str| attachment.get(key).and_then(Value::as_str).map(str::to_owned);
            let both = string("containerID").zip(string("ifname"));
            attachments
                .insert(both.ok_or_else(|| invalid("an entry without containerID or ifname".to_owned()))?);
        }
        let raw = list.map(|list| list.into_iter().map(Value::Object).collect());
        Ok(ValidAttachments { raw, attachments })
    }

    fn map(&self, member: &str) -> Result<Option<Map<String, Value>>, CniError> {
        let object = self.object()?;
        let Some(value) = object.value(member) else {
            return Ok(None);
        };
        value.object().map_err(|_| invalid_netconf(format!("json: {member} must be an object")))?;
        serde_json::from_str(value.as_str()).map(Some).map_err(|error| invalid_netconf(error.to_string()))
    }

    fn object(&self) -> Result<Object<'_>, CniError> {
        Object::parse(&self.text).map_err(unexpected_type)
    }
}

fn unexpected_type(error: JsonError) -> CniError {
    invalid_netconf(error.to_string())
}

fn invalid_netconf(why: String) -> CniError {
    CniError::plugin(format!("failed to load netconf: {why}"))
}
