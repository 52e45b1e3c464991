//! What the container runtime asks for: the `CNI_` environment variables.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::error::CniError;

/// The parameters of the protocol. One that is not given is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) command: String,
    pub(crate) container_id: String,
    /// The path of the container's network namespace.
    pub(crate) netns: PathBuf,
    /// The name of the interface inside the container.
    pub(crate) ifname: String,
    /// The directories in which other plugins are.
    pub(crate) path: OsString,
    /// Whether the container may share the plugin's own namespace.
    pub(crate) netns_override: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
}

impl Verb {
    const ALL: [Self; 5] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc];

    pub(crate) fn named(name: &str) -> Result<Self, CniError> {
        let found = Self::ALL.into_iter().find(|verb| verb.name() == name);
        found.ok_or_else(|| CniError::environment(format!("unknown CNI_COMMAND: {name}")))
    }

    /// The value of `CNI_COMMAND`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Parameters {
    pub(crate) fn from_lookup(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let given = |name: &str| variable(name).unwrap_or_default();
        let text = |name: &str| given(name).to_string_lossy().into_owned();
        let yes = |name: &str| matches!(text(name).to_ascii_lowercase().as_str(), "1" | "true");
        Self {
            command: text("CNI_COMMAND"),
            container_id: text("CNI_CONTAINERID"),
            netns: given("CNI_NETNS").into(),
            ifname: text("CNI_IFNAME"),
            path: given("CNI_PATH"),
            netns_override: yes("CNI_NETNS_OVERRIDE"),
        }
    }

    /// Checks that all is there that the verb needs, and that it can name files and interfaces.
    pub(crate) fn check(&self) -> Result<(), CniError> {
        let verb = Verb::ALL.into_iter().find(|verb| verb.name() == self.command);
        let of_container = matches!(verb, Some(Verb::Add | Verb::Del | Verb::Check));
        let of_namespace = matches!(verb, Some(Verb::Add | Verb::Check));
        if of_container && !self.container_id.is_empty() && !is_name(&self.container_id) {
            return Err(
                CniError::environment("invalid characters in containerID").with_details(&self.container_id)
            );
        }
        if of_container && !self.ifname.is_empty() {
            check_interface(&self.ifname)?;
        }
        let needed = [
            ("CNI_CONTAINERID", of_container, self.container_id.is_empty()),
            ("CNI_NETNS", of_namespace, self.netns.as_os_str().is_empty()),
            ("CNI_IFNAME", of_container, self.ifname.is_empty()),
            ("CNI_PATH", verb.is_some(), self.path.is_empty()),
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

/// Whether `text` may name a container or a network (CNI specification, "Parameters" and "Configuration format"):
/// one letter or digit, then letters, digits, dots, dashes and underscores.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Checks the name of an interface as the kernel does (`dev_valid_name` in `net/core/dev.c`).
fn check_interface(name: &str) -> Result<(), CniError> {
    /// `IFNAMSIZ`, less the byte that ends a string in C.
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
