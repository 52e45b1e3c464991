//! Findings: a fault, why it matters, and its cure.

use serde::Serialize;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, but may fail later.
    Warning,
    /// Traffic is lost, or the daemon fails.
    Error,
}

impl Severity {
    /// Returns the name in lower case.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of fault.
#[derive(Debug, Eq, PartialEq)]
pub struct Fault {
    /// The stable name.
    pub id: &'static str,
    /// The severity.
    pub severity: Severity,
    /// Why it matters.
    pub why: &'static str,
}

impl Fault {
    /// Defines an error.
    #[must_use]
    pub const fn error(id: &'static str, why: &'static str) -> Self {
        Self { id, severity: Severity::Error, why }
    }

    /// Defines a warning.
    #[must_use]
    pub const fn warning(id: &'static str, why: &'static str) -> Self {
        Self { id, severity: Severity::Warning, why }
    }

    /// Creates a finding of this fault.
    pub fn found(&'static self, what: impl Into<String>, cure: Cure) -> Finding {
        let Self { id, severity, why } = *self;
        Finding { id, severity, what: what.into(), why, cure }
    }
}

/// A fault of this host.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// The stable name of the fault.
    pub id: &'static str,
    /// The severity.
    pub severity: Severity,
    /// The faulty object and its state.
    pub what: String,
    /// Why it matters.
    pub why: &'static str,
    /// The fix.
    pub cure: Cure,
}

/// The fix of a finding. The operator replaces words in capitals.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Cure {
    /// Commands for a root shell, in order.
    pub commands: Vec<String>,
    /// Flags for the daemon and for doctor.
    pub flags: Vec<String>,
    /// Commands for a root shell that make the fix survive a reboot.
    pub lasting: Vec<String>,
}

impl Cure {
    /// Creates a cure of commands.
    pub fn run<T: Into<String>>(commands: impl IntoIterator<Item = T>) -> Self {
        Self { commands: commands.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Creates a cure of flags for the daemon.
    pub fn start_with<T: Into<String>>(flags: impl IntoIterator<Item = T>) -> Self {
        Self { flags: flags.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Adds commands that make the cure permanent.
    #[must_use]
    pub fn lasting<T: Into<String>>(self, lines: impl IntoIterator<Item = T>) -> Self {
        Self { lasting: lines.into_iter().map(Into::into).collect(), ..self }
    }

    /// Creates a cure that sets a kernel setting, given as its path below `/proc/sys`, permanently.
    pub fn sysctl(path: &str, value: u32) -> Self {
        // sysctl(8) expects a slash for a dot in a device name.
        let name: Vec<String> = path.split('/').map(|part| part.replace('.', "/")).collect();
        let line = format!("{}={value}", name.join("."));
        Self::run([format!("sysctl -w {line}")])
            .lasting([format!("echo '{line}' >> /etc/sysctl.d/90-flannel.conf")])
    }
}

/// Quotes a word for a shell if necessary.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_a_device_with_a_dot_in_its_name_is_written_as_sysctl_reads_it() {
        let cure = Cure::sysctl("net/ipv4/conf/flannel.1/rp_filter", 2);
        assert_eq!(cure.commands, ["sysctl -w net.ipv4.conf.flannel/1.rp_filter=2"]);
        assert_eq!(
            cure.lasting,
            ["echo 'net.ipv4.conf.flannel/1.rp_filter=2' >> /etc/sysctl.d/90-flannel.conf"]
        );
    }

    #[test]
    fn a_word_is_quoted_if_a_shell_would_take_it_apart() {
        assert_eq!(
            quoted("/coreos.com/network/subnets/10.5.1.0-24"),
            "/coreos.com/network/subnets/10.5.1.0-24"
        );
        assert_eq!(quoted("10.5.1.0-24&fd00::-64"), "'10.5.1.0-24&fd00::-64'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
