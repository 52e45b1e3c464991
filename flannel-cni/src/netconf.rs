//! The network configuration: what the runtime writes to standard input.

use std::collections::BTreeSet;
use std::path::PathBuf;

use flannel_core::json::{JsonError, Object};
use serde_json::{Map, Value};

use crate::error::CniError;
use crate::request::is_name;

/// The entry of a network configuration list that is meant for this plugin, with what the runtime adds to it.
#[derive(Clone, Debug)]
pub(crate) struct NetConf {
    pub(crate) name: String,
    /// The version of the protocol; empty if none is named.
    pub(crate) version: String,
    /// All of it, for what only some verbs need.
    text: String,
}

/// Where the files of the plugin are.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) subnet_file: PathBuf,
    pub(crate) data_dir: PathBuf,
}

/// What the delegate's configuration is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) delegate: Map<String, Value>,
    pub(crate) ipam: Map<String, Value>,
    pub(crate) runtime_config: Option<Map<String, Value>>,
}

/// An attachment that the runtime still knows: container id and interface name.
pub(crate) type Attachment = (String, String);

impl NetConf {
    /// Reads what every verb needs.
    pub(crate) fn parse(input: &[u8]) -> Result<Self, CniError> {
        let unreadable = |why: &dyn std::fmt::Display| {
            CniError::not_json(format!("error unmarshall network config: {why}"))
        };
        let text = std::str::from_utf8(input).map_err(|error| unreadable(&error))?;
        let object = Object::parse(text).map_err(|error| unreadable(&error))?;
        let word =
            |member| object.string(member).map(Option::unwrap_or_default).map_err(|error| unreadable(&error));
        let (name, version) = (word("name")?, word("cniVersion")?);
        if name.is_empty() {
            return Err(CniError::config("missing network name"));
        }
        if !is_name(&name) {
            return Err(CniError::config("invalid characters found in network name").with_details(name));
        }
        Ok(Self { name, version, text: text.to_owned() })
    }

    /// The paths that it names, or the usual ones.
    pub(crate) fn files(&self) -> Result<Files, CniError> {
        let object = self.object()?;
        let path = |member, usual: &str| {
            let given = object.string(member).map_err(wrong_type)?.filter(|path| !path.is_empty());
            Ok::<_, CniError>(PathBuf::from(given.unwrap_or_else(|| usual.to_owned())))
        };
        Ok(Files {
            subnet_file: path("subnetFile", "/run/flannel/subnet.env")?,
            data_dir: path("dataDir", "/var/lib/cni/flannel")?,
        })
    }

    /// The parts for the delegate.
    pub(crate) fn parts(&self) -> Result<Parts, CniError> {
        Ok(Parts {
            delegate: self.map("delegate")?.unwrap_or_default(),
            ipam: self.map("ipam")?.unwrap_or_default(),
            runtime_config: self.map("runtimeConfig")?,
        })
    }

    /// The result of an earlier ADD, which CHECK gets.
    pub(crate) fn previous_result(&self) -> Result<Option<Value>, CniError> {
        Ok(self.map("prevResult")?.map(Value::Object))
    }

    /// All attachments of this network that are to stay, for GC.
    pub(crate) fn valid_attachments(&self) -> Result<Valid, CniError> {
        let given = self.object()?.raw(VALID_ATTACHMENTS).unwrap_or("null");
        let wrong = |why: String| CniError::config(format!("{VALID_ATTACHMENTS}: {why}"));
        let list: Option<Vec<Map<String, Value>>> =
            serde_json::from_str(given).map_err(|error| wrong(error.to_string()))?;
        let mut attachments = BTreeSet::new();
        for attachment in list.iter().flatten() {
            let word = |key: &str| attachment.get(key).and_then(Value::as_str).map(str::to_owned);
            let both = word("containerID").zip(word("ifname"));
            attachments
                .insert(both.ok_or_else(|| wrong("an entry without containerID or ifname".to_owned()))?);
        }
        Ok(Valid { given: list.map(|list| list.into_iter().map(Value::Object).collect()), attachments })
    }

    fn map(&self, member: &str) -> Result<Option<Map<String, Value>>, CniError> {
        let object = self.object()?;
        let Some(value) = object.value(member) else {
            return Ok(None);
        };
        // The typed look-up words the error.
        value.object().map_err(|_| unloadable(format!("json: {member} must be an object")))?;
        serde_json::from_str(value.as_str()).map(Some).map_err(|error| unloadable(error.to_string()))
    }

    fn object(&self) -> Result<Object<'_>, CniError> {
        Object::parse(&self.text).map_err(wrong_type)
    }
}

/// The key under which a runtime lists what is to stay (CNI specification, "GC").
pub(crate) const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The attachments that are to stay.
#[derive(Clone, Debug)]
pub(crate) struct Valid {
    /// As given, for the delegate.
    pub(crate) given: Option<Vec<Value>>,
    pub(crate) attachments: BTreeSet<Attachment>,
}

fn wrong_type(error: JsonError) -> CniError {
    unloadable(error.to_string())
}

fn unloadable(why: String) -> CniError {
    CniError::plugin(format!("failed to load netconf: {why}"))
}
