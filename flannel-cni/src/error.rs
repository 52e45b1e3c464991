//! The error object of the CNI specification.

use std::fmt;

use serde_json::{Map, Value};

/// An error object of the CNI specification ("Error").
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CniError {
    /// One of [`ERROR_CODES`], or the code of a delegate.
    pub code: u32,
    /// The cause.
    pub msg: String,
    /// More about the cause; may be empty.
    pub details: String,
}

/// Codes of the CNI specification ("Well-known Error Codes") and of flannel.
mod code {
    pub(super) const UNKNOWN: u32 = 0;
    pub(super) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(super) const UNKNOWN_CONTAINER: u32 = 3;
    pub(super) const INVALID_ENVIRONMENT: u32 = 4;
    pub(super) const IO: u32 = 5;
    pub(super) const NOT_JSON: u32 = 6;
    pub(super) const INVALID_CONFIG: u32 = 7;
    /// The reference plugins return it for a container in the namespace that they run in.
    pub(super) const OWN_NETNS: u32 = 8;
    pub(super) const UNAVAILABLE: u32 = 50;
    /// Upstream's plugin returns it for every error.
    pub(super) const PLUGIN: u32 = 999;
}

/// Every code of the plugin's own errors.
pub const ERROR_CODES: [u32; 10] = [
    code::UNKNOWN,
    code::INCOMPATIBLE_VERSION,
    code::UNKNOWN_CONTAINER,
    code::INVALID_ENVIRONMENT,
    code::IO,
    code::NOT_JSON,
    code::INVALID_CONFIG,
    code::OWN_NETNS,
    code::UNAVAILABLE,
    code::PLUGIN,
];

impl CniError {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        debug_assert!(ERROR_CODES.contains(&code), "{code}");
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Any failure that has no code of its own.
    pub(crate) fn plugin(msg: impl Into<String>) -> Self {
        Self::new(code::PLUGIN, msg)
    }

    /// A parameter is missing or invalid.
    pub(crate) fn environment(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, msg)
    }

    /// Standard input cannot be read.
    pub(crate) fn io(msg: impl Into<String>) -> Self {
        Self::new(code::IO, msg)
    }

    /// The network configuration is not JSON, or a member has an unexpected type.
    pub(crate) fn not_json(msg: impl Into<String>) -> Self {
        Self::new(code::NOT_JSON, msg)
    }

    /// A member of the network configuration has an invalid value.
    pub(crate) fn config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    /// The configuration's protocol version is not supported, or does not know the operation.
    pub(crate) fn version(msg: impl Into<String>) -> Self {
        Self::new(code::INCOMPATIBLE_VERSION, msg)
    }

    /// The container has no attachment that this plugin made.
    pub(crate) fn unknown_container(msg: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN_CONTAINER, msg)
    }

    /// The container's network namespace is that of the plugin.
    pub(crate) fn own_netns() -> Self {
        Self::new(code::OWN_NETNS, "plugin's netns and netns from CNI_NETNS should not be the same")
    }

    /// `ADD` cannot succeed at present.
    pub(crate) fn unavailable(msg: impl Into<String>) -> Self {
        Self::new(code::UNAVAILABLE, msg)
    }

    /// A delegate failed without printing a valid error object.
    pub(crate) fn without_object(msg: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN, msg)
    }

    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// Whether a delegate does not implement the operation or the protocol's version.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.code == code::INCOMPATIBLE_VERSION
            || (self.code == code::INVALID_ENVIRONMENT && self.msg.starts_with("unknown CNI_COMMAND"))
    }

    /// Parses the error object that a delegate printed.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let string = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = object.get("code").and_then(Value::as_u64).and_then(|code| u32::try_from(code).ok());
        Ok(Self { code: code.unwrap_or(code::UNKNOWN), msg: string("msg"), details: string("details") })
    }

    /// Returns the object as a plugin prints it: indented by four spaces, without a newline at the end.
    pub fn to_json(&self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let mut text = format!("{{\n    \"code\": {},\n    \"msg\": {}", self.code, quoted(&self.msg));
        if !self.details.is_empty() {
            text += &format!(",\n    \"details\": {}", quoted(&self.details));
        }
        text + "\n}"
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

impl std::error::Error for CniError {}
