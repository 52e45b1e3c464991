//! The parameters that a container runtime passes in `CNI_` environment variables.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::error::CniError;

/// The parameters of one run of the plugin (CNI specification, "Parameters"). A missing one is empty.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    /// `CNI_COMMAND`: the name of an [`Operation`], or `VERSION`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: the path of the container's network namespace.
    pub netns: PathBuf,
    /// `CNI_IFNAME`: the name of the interface inside the container.
    pub ifname: String,
    /// `CNI_PATH`: the directories to search for the delegate.
    pub path: OsString,
    /// `CNI_NETNS_OVERRIDE`: whether the container may share the plugin's own namespace.
    pub netns_override: bool,
}

/// An operation of the protocol on a network configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation {
    /// Attaches a container.
    Add,
    /// Detaches a container.
    Del,
    /// Checks that a container is attached as `ADD` left it.
    Check,
    /// Checks that `ADD` could succeed.
    Status,
    /// Detaches every container that the runtime does not list.
    Gc,
}

impl Operation {
    const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc];

    /// Returns the operation with this `CNI_COMMAND`.
    ///
    /// # Errors
    /// Fails with code 4 for any other text, `VERSION` included.
    pub fn from_name(name: &str) -> Result<Self, CniError> {
        let found = Self::ALL.into_iter().find(|operation| operation.name() == name);
        found.ok_or_else(|| CniError::environment(format!("unknown CNI_COMMAND: {name}")))
    }

    /// Returns the value of `CNI_COMMAND`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Parameters {
    /// Reads the parameters through `variable`, which returns the value of an environment variable.
    pub fn from_lookup(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let value = |name: &str| variable(name).unwrap_or_default();
        let text = |name: &str| value(name).to_string_lossy().into_owned();
        let is_true = |name: &str| matches!(text(name).to_ascii_lowercase().as_str(), "1" | "true");
        Self {
            command: text("CNI_COMMAND"),
            container_id: text("CNI_CONTAINERID"),
            netns: value("CNI_NETNS").into(),
            ifname: text("CNI_IFNAME"),
            path: value("CNI_PATH"),
            netns_override: is_true("CNI_NETNS_OVERRIDE"),
        }
    }

    /// Checks that every parameter that the operation needs is present and valid.
    pub(crate) fn check(&self) -> Result<(), CniError> {
        let operation = Operation::from_name(&self.command).ok();
        let of_container = matches!(operation, Some(Operation::Add | Operation::Del | Operation::Check));
        let of_namespace = matches!(operation, Some(Operation::Add | Operation::Check));
        if of_container && !self.container_id.is_empty() && !is_name(&self.container_id) {
            return Err(
                CniError::environment("invalid characters in containerID").with_details(&self.container_id)
            );
        }
        if of_container && !self.ifname.is_empty() {
            check_interface_name(&self.ifname)?;
        }
        let needed = [
            ("CNI_CONTAINERID", of_container, self.container_id.is_empty()),
            ("CNI_NETNS", of_namespace, self.netns.as_os_str().is_empty()),
            ("CNI_IFNAME", of_container, self.ifname.is_empty()),
            ("CNI_PATH", operation.is_some(), self.path.is_empty()),
        ];
        let missing: Vec<_> = needed
            .iter()
            .filter(|(_, needed, missing)| *needed && *missing)
            .map(|(name, ..)| *name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(CniError::environment(format!("required env variables [{}] missing", missing.join(","))))
    }
}

/// Whether `text` is a valid container ID or network name (CNI specification, "Parameters" and "Configuration format"):
/// a letter or digit, then letters, digits, dots, dashes and underscores.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Checks the name of an interface as the kernel does (`dev_valid_name` in `net/core/dev.c`).
fn check_interface_name(name: &str) -> Result<(), CniError> {
    /// `IFNAMSIZ` without the terminating zero byte.
    const LONGEST: usize = 15;
    let wrong = if name.len() > LONGEST {
        "interface name is too long"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace()) {
        "interface name contains / or : or whitespace characters"
    } else {
        return Ok(());
    };
    Err(CniError::environment(wrong).with_details(name))
}
