//! A cluster whose first host doctor examines, with fake programs for its cures.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flannel_testing::{Directory, Process, eventually, output_in, program, write_program};
use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, VXLAN};

/// Programs that a lab lacks or that would change the machine; tests replace them by scripts.
const STAND_INS: [&str; 8] =
    ["apt-get", "dnf", "modprobe", "networkctl", "nmcli", "ssh", "systemctl", "timedatectl"];

pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    /// Flags for doctor in addition to the daemon's.
    pub(crate) flags: Vec<String>,
    /// The first host's mount namespace, if it has its own.
    room: Option<Process>,
    tools: Directory,
}

/// The output of doctor.
pub(crate) struct Report {
    pub(crate) status: i32,
    pub(crate) findings: Vec<Value>,
}

impl Site {
    /// Creates hosts and an etcd with a config, without daemons.
    pub(crate) fn new(hosts: usize) -> Self {
        let site = Self::of(Cluster::new(hosts));
        site.cluster.configure(VXLAN);
        site
    }

    /// Creates hosts with a daemon each.
    pub(crate) fn running(hosts: usize) -> Self {
        Self::of(Cluster::running(hosts))
    }

    pub(crate) fn of(cluster: Cluster) -> Self {
        let tools = Directory::new().unwrap();
        let site = Self { cluster, flags: Vec::new(), room: None, tools };
        for stand_in in STAND_INS {
            site.stand_in(stand_in, "");
        }
        site
    }

    /// Replaces a program by a shell script.
    pub(crate) fn stand_in(&self, name: &str, script: &str) {
        let path = self.tools.join(name);
        let asked = self.path("asked");
        let script = format!("#!/bin/sh -e\necho {name} \"$@\" >> {}\n{script}\n", asked.display());
        write_program(&path, &script).unwrap();
    }

    /// The path of a file in the test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    /// The calls of the replaced programs, one per line.
    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.path("asked")).unwrap_or_default()
    }

    /// Gives the first host its own mount namespace.
    pub(crate) fn unshare_mounts(&mut self) {
        let mut command = Command::new(program("unshare", "util-linux").unwrap());
        let script = "echo ready >&2; exec sleep 600";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        let room = Process::spawn_in(&self.cluster.lab.hosts[0].namespace, command).unwrap();
        room.wait_for_line("ready", PATIENCE).unwrap();
        self.room = Some(room);
    }

    /// Returns the command for a program on the first host, in its mount namespace.
    pub(crate) fn command(&self, program_file: &Path) -> Command {
        let Some(room) = &self.room else { return Command::new(program_file) };
        let mut command = Command::new(program("nsenter", "util-linux").unwrap());
        command.arg(format!("--mount=/proc/{}/ns/mnt", room.id())).arg("--").arg(program_file);
        command
    }

    fn output(&self, command: Command) -> Output {
        output_in(&self.cluster.lab.hosts[0].namespace, command).unwrap()
    }

    /// Runs a shell script on the first host, up to the first failing command.
    pub(crate) fn shell(&self, line: &str) -> String {
        let mut command = self.command(Path::new("/bin/sh"));
        let path = format!("{}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", self.tools.path().display());
        command.args(["-e", "-c", line]).env("PATH", path);
        let output = self.output(command);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Returns the command for doctor on the first host, with the flags of its daemon.
    pub(crate) fn doctor_command(&self) -> Command {
        let daemon = self.cluster.command(0);
        let mut command = self.command(Path::new(daemon.get_program()));
        command.args(["doctor", "--json"]).args(daemon.get_args()).args(&self.flags);
        command
    }

    pub(crate) fn doctor(&self) -> Report {
        Report::of(&self.output(self.doctor_command()))
    }

    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.doctor().ids()
    }

    /// Runs the commands of a finding's cure.
    pub(crate) fn apply(&self, finding: &Value) {
        let commands = commands(finding);
        assert!(!commands.is_empty(), "{finding:#}");
        commands.iter().for_each(|line| drop(self.shell(line)));
    }

    /// Makes a fault, waits for its finding, applies the cure, waits until it is gone, and returns the finding.
    pub(crate) fn cycle(&self, id: &str, fault: impl FnOnce()) -> Value {
        let before = self.ids();
        assert!(!before.contains(id), "{id} was there before: {before:?}");
        fault();
        let finding = self.wait_for_finding(id);
        self.apply(&finding);
        self.wait_until_cured(&before, id);
        finding
    }

    /// Waits until doctor has this finding, and returns it.
    pub(crate) fn wait_for_finding(&self, id: &str) -> Value {
        let found = eventually(PATIENCE, || {
            let report = self.doctor();
            report.finding(id).cloned().ok_or_else(|| format!("{:#?}", report.findings))
        });
        let finding = found.unwrap_or_else(|error| panic!("{id}: {error}"));
        assert!(finding["what"].as_str().is_some_and(|what| !what.is_empty()), "{finding:#}");
        finding
    }

    /// Waits until doctor has no findings but those from before.
    pub(crate) fn wait_until_cured(&self, before: &BTreeSet<String>, id: &str) {
        let gone = eventually(PATIENCE, || {
            let report = self.doctor();
            if report.ids().is_subset(before) { Ok(()) } else { Err(format!("{:#?}", report.findings)) }
        });
        gone.unwrap_or_else(|error| panic!("{id} is cured: {error}"));
    }

    /// Writes the lease of another host, as upstream does.
    pub(crate) fn lease(&self, key: &str, public: &str) {
        let record = format!(
            r#"{{"PublicIP":"{public}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:2a:00:00:00:{:02x}"}}}}"#,
            key.len() + public.len()
        );
        let key = format!("/coreos.com/network/subnets/{key}");
        self.cluster.etcd.etcdctl(&["put", &key, &record]).unwrap();
    }
}

impl Report {
    pub(crate) fn of(output: &Output) -> Self {
        let read: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let findings = read["findings"].as_array().unwrap().clone();
        Self { status: output.status.code().unwrap(), findings }
    }

    pub(crate) fn ids(&self) -> BTreeSet<String> {
        self.findings.iter().map(|finding| finding["id"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn finding(&self, id: &str) -> Option<&Value> {
        self.findings.iter().find(|finding| finding["id"] == id)
    }
}

/// The commands of a cure.
pub(crate) fn commands(finding: &Value) -> Vec<String> {
    texts(&finding["cure"]["commands"])
}

/// The flags of a cure.
pub(crate) fn flags(finding: &Value) -> Vec<String> {
    texts(&finding["cure"]["flags"])
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

pub(crate) fn what(finding: &Value) -> &str {
    finding["what"].as_str().unwrap()
}
