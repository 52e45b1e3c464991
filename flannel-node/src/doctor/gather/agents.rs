//! The agents that run in this network namespace.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use crate::doctor::facts::RunningAgent;
use crate::doctor::profile::AgentProfile;

/// Reads the command line of an agent, given its arguments and a variable of its environment by name; `None` if the
/// process does something else.
type ReadOptions<'a> =
    &'a dyn Fn(Vec<OsString>, &dyn Fn(&str) -> Option<OsString>) -> Result<Option<AgentProfile>, String>;

/// Finds the processes in this network namespace that run a program of this name. Those of other users are visible to root
/// only.
pub fn running(program: &str, options: ReadOptions<'_>) -> Vec<RunningAgent> {
    let own_namespace = fs::read_link("/proc/thread-self/ns/net").ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut agents: Vec<RunningAgent> = ids
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let namespace = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            namespace.is_some() && namespace == own_namespace
        })
        .filter_map(|pid| agent(pid, program, options))
        .collect();
    agents.sort_by_key(|agent| agent.pid);
    agents
}

fn agent(pid: u32, wanted: &str, read: ReadOptions<'_>) -> Option<RunningAgent> {
    // Checked before reading the command line, which is its own after exec.
    if is_copy(pid) {
        return None;
    }
    let words = |name: &str| strings(fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default());
    let mut arguments = words("cmdline").into_iter();
    let program = arguments.next()?;
    let name = Path::new(&program).file_name()?;
    // The file name of a program that was replaced on disk stays the same.
    if name != wanted {
        return None;
    }
    let arguments: Vec<OsString> = arguments.collect();
    let environment = words("environ");
    let variable = |name: &str| {
        environment.iter().find_map(|pair| {
            let (key, value) = pair.to_str()?.split_once('=')?;
            (key == name).then(|| OsString::from(value))
        })
    };
    let options = match read(arguments.clone(), &variable) {
        Ok(Some(options)) => Ok(options),
        // A subcommand, like this process.
        Ok(None) => return None,
        Err(error) => Err(error),
    };
    let command = shown(&program, &arguments);
    Some(RunningAgent { pid, command, unit: unit(pid), options, devices: Vec::new() })
}

/// Returns whether a process has forked but not yet executed a program, so that it has its parent's command line (proc_pid_stat(5); `PF_FORKNOEXEC` in `include/linux/sched.h`).
fn is_copy(pid: u32) -> bool {
    const FORKED_NO_EXEC: u64 = 0x40;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & FORKED_NO_EXEC != 0)
}

/// Splits a file at zero bytes.
fn strings(bytes: Vec<u8>) -> Vec<OsString> {
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// Formats the command line without passwords.
fn shown(program: &OsString, arguments: &[OsString]) -> String {
    let mut words = vec![program.to_string_lossy().into_owned()];
    let mut is_secret = false;
    for argument in arguments {
        let argument = argument.to_string_lossy();
        let shown = match argument.split_once('=') {
            _ if std::mem::take(&mut is_secret) => "…".to_owned(),
            Some((flag, _)) if flag.ends_with("password") => format!("{flag}=…"),
            None if argument.ends_with("-etcd-password") => {
                is_secret = true;
                argument.into_owned()
            }
            _ => argument.into_owned(),
        };
        words.push(shown);
    }
    words.join(" ")
}

/// Returns the systemd unit of a process (systemd's `CGROUP_DELEGATION`: the last part of its group's path).
fn unit(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().next_back()?.rsplit(':').next()?;
    path.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};

    use flannel_testing::eventually;

    use super::*;

    #[test]
    fn a_daemon_that_is_about_to_run_a_program_is_no_second_one() {
        // A shell by that name, and a forked copy that waits.
        let mut command = Command::new("sh");
        command.arg0("/usr/bin/flanneld").args(["-c", "(read line); :"]).stdin(Stdio::piped());
        let mut shell = command.spawn().expect("a shell");
        let children = format!("/proc/{0}/task/{0}/children", shell.id());
        let copy = eventually(std::time::Duration::from_secs(30), || {
            fs::read_to_string(&children).unwrap_or_default().trim().parse::<u32>()
        });
        let (copy, found) = (copy.expect("a copy"), running("flanneld", &|_, _| Err("none".to_owned())));
        drop(shell.stdin.take());
        shell.wait().expect("ended");
        let is_found = |pid: u32| found.iter().any(|daemon| daemon.pid == pid);
        assert_eq!((is_found(shell.id()), is_found(copy)), (true, false), "{found:?}");
    }

    #[test]
    fn a_password_on_a_command_line_is_not_shown() {
        let show = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            shown(&"flanneld".into(), &arguments)
        };
        assert_eq!(show(&["-etcd-password=x", "-iface=eth0"]), "flanneld -etcd-password=… -iface=eth0");
        assert_eq!(show(&["--etcd-password", "x", "-v", "1"]), "flanneld --etcd-password … -v 1");
    }
}
