//! Versions of the CNI protocol.

use crate::error::CniError;
use crate::parameters::Operation;

/// The versions of the CNI protocol that the plugin implements, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version of a configuration without `cniVersion`.
const DEFAULT: &str = "0.1.0";

/// Returns the answer to `VERSION`.
pub(crate) fn report() -> String {
    let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];
    let supported = SUPPORTED_VERSIONS.join("\",\"");
    format!("{{\"cniVersion\":\"{newest}\",\"supportedVersions\":[\"{supported}\"]}}\n")
}

/// Checks that the plugin supports the configuration's version, and that this version has the operation.
pub(crate) fn check(version: &str, operation: Operation) -> Result<(), CniError> {
    let version = if version.is_empty() { DEFAULT } else { version };
    let Some(age) = SUPPORTED_VERSIONS.iter().position(|supported| *supported == version) else {
        let supported = SUPPORTED_VERSIONS.map(|version| format!("{version:?}")).join(" ");
        return Err(CniError::version("incompatible CNI versions")
            .with_details(format!("config is {version:?}, plugin supports [{supported}]")));
    };
    let since = match operation {
        Operation::Add | Operation::Del => DEFAULT,
        Operation::Check => "0.4.0",
        Operation::Status | Operation::Gc => "1.1.0",
    };
    if SUPPORTED_VERSIONS[..=age].contains(&since) {
        Ok(())
    } else {
        Err(CniError::version(format!("config version does not allow {operation}")))
    }
}
