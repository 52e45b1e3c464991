//! What goes wrong, in the form that container runtimes read.

use serde_json::{Map, Value};

/// An error object of the CNI specification ("Error").
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct CniError {
    pub(crate) code: u32,
    pub(crate) msg: String,
    pub(crate) details: String,
}

/// Codes of the CNI specification, "Well-known Error Codes", and those of flannel.
mod code {
    /// The other plugin said nothing that could be read.
    pub(super) const UNKNOWN: u32 = 0;
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const UNKNOWN_CONTAINER: u32 = 3;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const NOT_JSON: u32 = 6;
    pub(super) const INVALID_CONFIG: u32 = 7;
    /// What the reference plugins say when they are asked to change their own namespace.
    pub(super) const OWN_NETNS: u32 = 8;
    pub(super) const UNAVAILABLE: u32 = 50;
    /// The plugin's own; every error of flannel has had it.
    pub(super) const PLUGIN: u32 = 999;
}

impl CniError {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// The plugin itself failed.
    pub(crate) fn plugin(msg: impl Into<String>) -> Self {
        Self::new(code::PLUGIN, msg)
    }

    /// The environment variables are not what the verb needs.
    pub(crate) fn environment(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, msg)
    }

    /// Standard input could not be read.
    pub(crate) fn io(msg: impl Into<String>) -> Self {
        Self::new(code::IO, msg)
    }

    /// Standard input is not JSON, or not of the expected types.
    pub(crate) fn not_json(msg: impl Into<String>) -> Self {
        Self::new(code::NOT_JSON, msg)
    }

    /// The network configuration says something that cannot be.
    pub(crate) fn config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    /// Another version of the protocol is asked for than there is.
    pub(crate) fn version(msg: impl Into<String>) -> Self {
        Self::new(code::INCOMPATIBLE_VERSION, msg)
    }

    /// The container has no attachment that this plugin made.
    pub(crate) fn unknown_container(msg: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN_CONTAINER, msg)
    }

    /// The container's namespace is the one that the plugin runs in.
    pub(crate) fn own_netns() -> Self {
        Self::new(code::OWN_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
    }

    /// No container can be added at present.
    pub(crate) fn unavailable(msg: impl Into<String>) -> Self {
        Self::new(code::UNAVAILABLE, msg)
    }

    /// Another plugin failed without saying why in a form that can be read.
    pub(crate) fn speechless(msg: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN, msg)
    }

    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// Whether another plugin refused because it has never heard of the verb or of the protocol's version.
    pub(crate) fn is_not_understood(&self) -> bool {
        self.code == code::INCOMPATIBLE_VERSION
            || (self.code == code::INVALID_ENVIRONMENT && self.msg.starts_with("unknown CNI_COMMAND"))
    }

    /// Reads the error object that another plugin printed.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let word = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = object.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok());
        Ok(Self { code: code.unwrap_or(code::UNKNOWN), msg: word("msg"), details: word("details") })
    }

    /// The object as it is printed: indented by four spaces, without a newline at the end.
    pub(crate) fn to_json(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let mut text = format!("{{\n    \"code\": {},\n    \"msg\": {}", self.code, quoted(&self.msg));
        if !self.details.is_empty() {
            text += &format!(",\n    \"details\": {}", quoted(&self.details));
        }
        text + "\n}"
    }
}
