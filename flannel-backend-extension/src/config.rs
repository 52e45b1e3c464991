//! The options of the extension backend in the network configuration.

use std::time::Duration;

use flannel_core::json::JsonError;
use flannel_core::{BackendConfig, BackendError};

/// The default of `CommandTimeout`, in seconds: generous for a command that creates a device or a route, and well below the
/// 90 s after which systemd gives up on a start.
const DEFAULT_LIMIT: u64 = 60;

/// The configured commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtensionConfig {
    pub(crate) pre_startup: Option<String>,
    pub(crate) post_startup: Option<String>,
    pub(crate) subnet_add: Option<String>,
    pub(crate) subnet_remove: Option<String>,
    pub(crate) shutdown: Option<String>,
    /// The time limit of each command.
    pub(crate) limit: Duration,
}

impl ExtensionConfig {
    /// Parses the options and ignores unknown ones.
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
    fn absent_and_blank_commands_are_none() {
        let none = ExtensionConfig { limit: Duration::from_secs(60), ..ExtensionConfig::default() };
        assert_eq!(parse(""), Ok(none.clone()));
        assert_eq!(parse(r#","PreStartupCommand":" ","ShutdownCommand":null"#), Ok(none));
    }

    #[test]
    fn an_error_names_the_invalid_member() {
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
