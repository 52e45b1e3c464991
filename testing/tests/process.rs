//! Programs inside namespaces: where they run, their log lines, and how they end.

#![allow(clippy::unwrap_used, reason = "a failed expectation is how a test fails")]

use flannel_netlink::Namespace;
use flannel_testing::{Process, eventually, output_in, program};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_program_runs_in_its_namespace() {
    let namespace = Namespace::create().unwrap();
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    let output = output_in(&namespace, command).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("net:[{}]\n", namespace.inode()));
    let own = Namespace::current().unwrap();
    assert_ne!(own.inode(), namespace.inode());
}

#[test]
fn a_line_is_found_whether_written_before_or_after_the_call() {
    let process = shell("echo first >&2; echo second >&2; sleep 1000");
    process.wait_for_line("second", LIMIT).unwrap();
    assert_eq!(process.wait_for_line("irs", LIMIT).unwrap(), "first");
    assert_eq!(process.lines(), ["first", "second"]);
    let message = process.wait_for_line("third", Duration::from_millis(20)).unwrap_err().to_string();
    assert_eq!(message, "no line with \"third\" within 20ms; the last lines were:\nfirst\nsecond");
}

#[test]
fn the_wait_for_a_line_ends_with_the_program() {
    let process = shell("echo last words >&2");
    let message = process.wait_for_line("ready", Duration::from_secs(60)).unwrap_err().to_string();
    assert!(message.contains("before the program ended") && message.ends_with("\nlast words"), "{message}");
}

#[test]
fn a_program_that_handles_sigterm_ends_with_its_own_status() {
    let mut process = shell("trap 'echo bye >&2; exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done");
    process.wait_for_line("ready", LIMIT).unwrap();
    assert_eq!(process.exit_status().unwrap(), None);
    assert_eq!(process.terminate(LIMIT).unwrap().code(), Some(7));
    assert_eq!(process.lines(), ["ready", "bye"]);
    // A second call succeeds and signals nothing.
    assert_eq!(process.terminate(LIMIT).unwrap().code(), Some(7));
    process.signal(9).unwrap();
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_by_its_owner_only() {
    let mut process = shell("trap '' TERM; echo ready >&2; while :; do sleep 0.01; done");
    process.wait_for_line("ready", LIMIT).unwrap();
    let refused = process.terminate(Duration::from_millis(50)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
    assert_eq!(process.exit_status().unwrap(), None);
    assert_eq!(process.kill().unwrap().signal(), Some(9));
}

#[test]
fn a_dropped_program_ends() {
    let process = shell("echo ready >&2; exec sleep 1000");
    process.wait_for_line("ready", LIMIT).unwrap();
    let directory = format!("/proc/{}", process.id());
    assert!(Path::new(&directory).exists());
    drop(process);
    assert!(!Path::new(&directory).exists());
}

#[test]
fn the_children_of_a_killed_program_end_with_it() {
    let mut process = shell("sleep 1000 & echo child $! >&2; wait");
    let line = process.wait_for_line("child ", LIMIT).unwrap();
    let child = format!("/proc/{}/cmdline", line.trim_start_matches("child "));
    process.kill().unwrap();
    // An orphan may stay as a zombie, which has no command line.
    eventually(LIMIT, || std::fs::read(&child).unwrap_or_default().is_empty()).unwrap();
}

#[test]
fn a_program_outlives_the_thread_that_started_it() {
    let mut process = std::thread::spawn(|| shell("echo ready >&2; exec sleep 1000")).join().unwrap();
    process.wait_for_line("ready", LIMIT).unwrap();
    assert_eq!(process.exit_status().unwrap(), None);
}

#[test]
fn starting_a_missing_program_fails() {
    let namespace = Namespace::current().unwrap();
    let error = Process::spawn_in(&namespace, Command::new("no-such-program")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

/// Run by the test below in another process, which is then killed.
const VICTIM: &str = "FLANNEL_TESTING_VICTIM";

#[test]
fn the_programs_of_a_killed_process_end_with_it() {
    if std::env::var_os(VICTIM).is_some() {
        let process = std::thread::spawn(|| shell("exec sleep 1000")).join().unwrap();
        eprintln!("program {}", process.id());
        std::thread::park();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "the_programs_of_a_killed_process_end_with_it", "--nocapture"]);
    command.env(VICTIM, "1");
    let mut victim = Process::spawn_in(&Namespace::current().unwrap(), command).unwrap();
    let line = victim.wait_for_line("program ", LIMIT).unwrap();
    let program = format!("/proc/{}", line.trim_start_matches("program "));
    assert!(Path::new(&program).exists());
    victim.kill().unwrap();
    // Without a reaper it may stay as a zombie, which has no command line.
    let is_running = || std::fs::read(format!("{program}/cmdline")).is_ok_and(|line| !line.is_empty());
    eventually(LIMIT, || !is_running()).unwrap();
}

/// Starts a shell that runs `script` in the caller's namespace.
fn shell(script: &str) -> Process {
    let mut command = Command::new(program("sh", "dash").unwrap());
    command.args(["-c", script]);
    Process::spawn_in(&Namespace::current().unwrap(), command).unwrap()
}
