//! A machine: a host of the lab with its own root file system and systemd.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flannel_netlink::Namespace;
use flannel_testing::{Process, eventually, output_in, program};

/// Long enough for a machine under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The source directory on each machine, in which commands run.
pub(crate) const SOURCE: &str = "/usr/src/flannel-rs";

/// A running machine; dropping it stops it.
pub(crate) struct Machine {
    pub(crate) name: String,
    namespace: Namespace,
    /// The PID of its init outside.
    first: u32,
    system: Process,
    cgroup: String,
}

impl Machine {
    /// Boots a machine on the network of a host.
    pub(crate) fn boot(namespace: &Namespace, name: &str) -> Self {
        for missing in ["systemctl", "systemd-analyze"] {
            program(missing, "systemd").unwrap();
        }
        assert!(
            Path::new("/lib/systemd/systemd").exists(),
            "systemd is not installed: apt-get install -y systemd"
        );
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_flanneld")).parent().unwrap();
        assert!(programs.join("flannel").exists(), "the CNI plugin is not built: cargo build -p flannel-cni");
        static BOOTED: AtomicU32 = AtomicU32::new(0);
        let number = BOOTED.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("flannel-testing-{}-{number}", std::process::id());
        let mut command = Command::new(program("unshare", "util-linux").unwrap());
        command.args(["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh"]);
        command
            .arg(source.join("flanneld-bin/tests/machines/boot.sh"))
            .arg(&cgroup)
            .arg(programs)
            .arg(&source)
            .arg(name);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let system = Process::spawn_in(namespace, command).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", system.id());
        let first = eventually(PATIENCE, || {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            text.split_whitespace().next().and_then(|pid| pid.parse().ok())
        });
        let first = first.unwrap_or_else(|_| panic!("does not boot: {:#?}", system.lines()));
        let machine = Self { name: name.to_owned(), namespace: namespace.clone(), first, system, cgroup };
        let booted = eventually(PATIENCE, || {
            let output = machine.run("systemctl is-system-running");
            let state = text(&output);
            if state == "running" || state == "degraded" { Ok(()) } else { Err(state) }
        });
        booted.unwrap_or_else(|error| panic!("{error}: {:#?}", machine.system.lines()));
        machine
    }

    /// Runs a command in a shell on the machine, in the source directory.
    pub(crate) fn run(&self, command: &str) -> Output {
        let mut inside = Command::new(program("nsenter", "util-linux").unwrap());
        inside.arg(format!("--target={}", self.first));
        inside.args([
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--cgroup",
            "--root",
            &format!("--wd={}", self.path(SOURCE).display()),
        ]);
        inside.args(["sh", "-c", command]).env_clear();
        inside
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root");
        output_in(&self.namespace, inside).unwrap()
    }

    /// Runs a command that must succeed and returns its standard output.
    pub(crate) fn get(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{}: {command}: {}", self.name, text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The path of a file of the machine from outside.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.first))
    }

    /// Writes a file on the machine.
    pub(crate) fn write(&self, inside: &str, text: &str) {
        let path = self.path(inside);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// The journal of a unit.
    pub(crate) fn journal(&self, unit: &str) -> String {
        self.get(&format!("journalctl --no-pager -o cat -u {unit}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.system.kill();
        // The kernel needs time to kill all processes of the machine.
        let remove = format!(
            "mount -t cgroup2 cgroup2 /mnt; for i in $(seq 100); do [ -d /mnt/{0} ] || exit 0; \
             find /mnt/{0} -depth -type d -exec rmdir {{}} + 2>/dev/null; sleep 0.05; done",
            self.cgroup
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &remove]);
        let _ = output_in(&self.namespace, command);
    }
}

/// The output of a command.
pub(crate) fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}
