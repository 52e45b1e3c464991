//! The versions of the CNI protocol.

use crate::error::CniError;
use crate::request::Verb;

/// What this plugin speaks, oldest first.
pub(crate) const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version of a configuration that names none.
const UNNAMED: &str = "0.1.0";

/// The answer to `VERSION`.
pub(crate) fn report() -> String {
    let newest = SUPPORTED[SUPPORTED.len() - 1];
    format!("{{\"cniVersion\":\"{newest}\",\"supportedVersions\":[\"{}\"]}}\n", SUPPORTED.join("\",\""))
}

/// Checks that the configuration's version is one we speak, and that it knows the verb.
pub(crate) fn check(version: &str, verb: Verb) -> Result<(), CniError> {
    let version = if version.is_empty() { UNNAMED } else { version };
    let Some(age) = SUPPORTED.iter().position(|known| *known == version) else {
        let supported = SUPPORTED.map(|known| format!("{known:?}")).join(" ");
        return Err(CniError::version("incompatible CNI versions")
            .with_details(format!("config is {version:?}, plugin supports [{supported}]")));
    };
    let since = match verb {
        Verb::Add | Verb::Del => UNNAMED,
        Verb::Check => "0.4.0",
        Verb::Status | Verb::Gc => "1.1.0",
    };
    if SUPPORTED[..age + 1].contains(&since) {
        Ok(())
    } else {
        Err(CniError::version(format!("config version does not allow {verb}")))
    }
}
