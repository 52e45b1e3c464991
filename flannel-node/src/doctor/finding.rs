//! What doctor finds: which fault, why it matters, and what cures it.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, and somebody should look before it does not.
    Warning,
    /// Traffic is lost, or the daemon cannot do its work.
    Error,
}

impl Severity {
    pub fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A fault that doctor knows.
#[derive(Debug, Eq, PartialEq)]
pub struct Fault {
    /// Its name, which stays.
    pub id: &'static str,
    pub severity: Severity,
    /// Why it matters.
    pub why: &'static str,
}

impl Fault {
    pub const fn error(id: &'static str, why: &'static str) -> Self {
        Self { id, severity: Severity::Error, why }
    }

    pub const fn warning(id: &'static str, why: &'static str) -> Self {
        Self { id, severity: Severity::Warning, why }
    }

    /// Says that it was found.
    pub fn found(&'static self, what: impl Into<String>, cure: Cure) -> Finding {
        let Self { id, severity, why } = *self;
        Finding { id, severity, what: what.into(), why, cure }
    }
}

/// A fault that was found.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    pub id: &'static str,
    pub severity: Severity,
    /// What was found, on which object.
    pub what: String,
    pub why: &'static str,
    pub cure: Cure,
}

/// What to do. Words in capitals stand for what only the operator knows.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Cure {
    /// Lines for a shell, all of them, with the rights of root.
    pub commands: Vec<String>,
    /// Flags to start the daemon with, and doctor.
    pub flags: Vec<String>,
    /// Lines for a shell so that it stays cured when the host starts again.
    pub lasting: Vec<String>,
}

impl Cure {
    pub fn run<T: Into<String>>(commands: impl IntoIterator<Item = T>) -> Self {
        Self { commands: commands.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub fn start_with<T: Into<String>>(flags: impl IntoIterator<Item = T>) -> Self {
        Self { flags: flags.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub fn lasting<T: Into<String>>(self, lines: impl IntoIterator<Item = T>) -> Self {
        Self { lasting: lines.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets a kernel setting, given as its path below `/proc/sys`, and keeps it.
    pub fn sysctl(path: &str, value: u32) -> Self {
        // A device may have a dot in its name, which sysctl(8) wants as a slash then.
        let name: Vec<String> = path.split('/').map(|part| part.replace('.', "/")).collect();
        let line = format!("{}={value}", name.join("."));
        Self::run([format!("sysctl -w {line}")])
            .lasting([format!("echo '{line}' >> /etc/sysctl.d/90-flannel.conf")])
    }
}

/// A word for a shell, in quotes if it needs them.
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
