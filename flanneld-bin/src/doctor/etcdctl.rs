//! `etcdctl` commands for the registry that the flags name.

use std::path::Path;

use flannel_node::doctor::{RegistryCommands, quoted};

use crate::options::EtcdOptions;

/// Builds `etcdctl` commands.
#[derive(Clone, Debug)]
pub(crate) struct Etcdctl {
    etcd: EtcdOptions,
    is_v2: bool,
}

impl Etcdctl {
    pub(crate) fn new(etcd: &EtcdOptions, is_v2: bool) -> Self {
        Self { etcd: etcd.clone(), is_v2 }
    }

    /// The program with its connection options. It prompts for the password.
    fn program(&self) -> String {
        let (api, names) = if self.is_v2 {
            ("2", ["--ca-file", "--cert-file", "--key-file", "--username"])
        } else {
            ("3", ["--cacert", "--cert", "--key", "--user"])
        };
        let endpoints = quoted(&self.etcd.endpoints.join(","));
        let mut command = format!("ETCDCTL_API={api} etcdctl --endpoints={endpoints}");
        let files = &self.etcd.files;
        let path =
            |path: &Option<std::path::PathBuf>| path.as_deref().map(Path::display).map(|p| p.to_string());
        let user = Some(self.etcd.user.name.clone()).filter(|name| !name.is_empty());
        let values = [path(&files.authorities), path(&files.certificate), path(&files.key), user];
        for (name, value) in names.iter().zip(values) {
            if let Some(value) = value {
                command += &format!(" {name}={}", quoted(&value));
            }
        }
        command
    }
}

impl RegistryCommands for Etcdctl {
    fn remove_record(&self, key: &str) -> String {
        let subcommand = if self.is_v2 { "rm" } else { "del" };
        format!("{} {subcommand} {}", self.program(), quoted(&format!("{}/subnets/{key}", self.etcd.prefix)))
    }

    fn write_config(&self, text: &str) -> String {
        let subcommand = if self.is_v2 { "set" } else { "put" };
        format!(
            "{} {subcommand} {} {}",
            self.program(),
            quoted(&format!("{}/config", self.etcd.prefix)),
            quoted(text)
        )
    }
}

#[cfg(test)]
mod tests;
