//! The backend's part of the network configuration.

use std::time::Duration;

use flannel_core::json::JsonError;
use flannel_core::{BackendConfig, BackendError};

/// How long a command may take unless the configuration says so: long for what makes a device or a route, short beside
/// the time after which a service manager gives up on a start (90 s).
const DEFAULT_LIMIT: u64 = 60;

/// The commands, those that are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtensionConfig {
    pub(crate) pre_startup: Option<String>,
    pub(crate) post_startup: Option<String>,
    pub(crate) subnet_add: Option<String>,
    pub(crate) subnet_remove: Option<String>,
    pub(crate) shutdown: Option<String>,
    /// How long each of them may take.
    pub(crate) limit: Duration,
}

impl ExtensionConfig {
    /// Reads the options; unknown ones are ignored.
    pub(crate) fn parse(backend: &BackendConfig) -> Result<Self, BackendError> {
        let wrong = |reason: String| BackendError::Config { backend: "extension", reason };
        let json = |error: JsonError| wrong(error.to_string());
        let options = backend.options.object().map_err(json)?;
        let command = |member: &str| match options.string(member).map_err(json)? {
            Some(text) if text.contains('\0') => Err(wrong(format!("{member} contains a NUL"))),
            text => Ok(text.filter(|text| !text.trim().is_empty())),
        };
        let limit = match options.unsigned("CommandTimeout").map_err(json)?.unwrap_or(DEFAULT_LIMIT) {
            seconds @ 1..=86_400 => Duration::from_secs(seconds),
            seconds => {
                return Err(wrong(format!("CommandTimeout is {seconds}, not 1 to 86400 seconds")));
            }
        };
        Ok(Self {
            pre_startup: command("PreStartupCommand")?,
            post_startup: command("PostStartupCommand")?,
            subnet_add: command("SubnetAddCommand")?,
            subnet_remove: command("SubnetRemoveCommand")?,
            shutdown: command("ShutdownCommand")?,
            limit,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use flannel_core::NetworkConfig;

    fn parse(options: &str) -> Result<ExtensionConfig, String> {
        let text = format!(r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"extension"{options}}}}}"#);
        ExtensionConfig::parse(&NetworkConfig::parse(&text).unwrap().backend)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn commands_that_are_absent_or_blank_are_none() {
        let none = ExtensionConfig { limit: Duration::from_secs(60), ..ExtensionConfig::default() };
        assert_eq!(parse(""), Ok(none.clone()));
        assert_eq!(parse(r#","PreStartupCommand":" ","ShutdownCommand":null"#), Ok(none));
    }

    #[test]
    fn a_member_that_cannot_be_used_is_named() {
        for (options, member) in [
            (r#","SubnetAddCommand":["ip"]"#, "SubnetAddCommand"),
            (r#","PostStartupCommand":"a\u0000b""#, "PostStartupCommand contains a NUL"),
            (r#","CommandTimeout":0"#, "CommandTimeout is 0, not 1 to 86400 seconds"),
        ] {
            let error = parse(options).unwrap_err();
            assert!(error.starts_with("error decoding extension backend config"), "{error}");
            assert!(error.contains(member), "{error}");
        }
    }
}
