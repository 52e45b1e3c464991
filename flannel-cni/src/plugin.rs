//! Running other plugins.

use std::env;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use crate::error::CniError;
use crate::parameters::{Operation, Parameters};

/// How often, and a second apart, to try to start a plugin whose file is being replaced.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_secs(1);

/// One run of another plugin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PluginRun<'a> {
    /// The plugin's file name.
    pub(crate) kind: &'a str,
    pub(crate) operation: Operation,
    pub(crate) parameters: &'a Parameters,
    pub(crate) input: &'a [u8],
}

impl PluginRun<'_> {
    /// Runs the plugin and returns what it prints.
    ///
    /// An error of the plugin keeps its code and message; its details default to the plugin's name.
    pub(crate) fn output(self) -> Result<Vec<u8>, CniError> {
        let operation = self.operation.name().to_ascii_lowercase();
        let delegated = |why: String| CniError::plugin(format!("failed to delegate {operation}: {why}"));
        let program = find(self.kind, &self.parameters.path).map_err(delegated)?;
        let output =
            self.run(&program).map_err(|error| delegated(format!("{}: {error}", program.display())))?;
        if !output.status.success() {
            return Err(self.failure(&output));
        }
        // Debug output of the plugin. A closed standard error loses nothing else.
        let _ = io::stderr().write_all(&output.stderr);
        Ok(output.stdout)
    }

    fn run(&self, program: &Path) -> io::Result<Output> {
        let mut child = self.start(program)?;
        let mut stdin = child.stdin.take();
        // On two threads, because the plugin may print before it has read all of its input.
        thread::scope(|scope| {
            scope.spawn(move || {
                // A plugin that needed the input that it did not read fails with its exit status.
                stdin.as_mut().map(|stdin| stdin.write_all(self.input))
            });
            child.wait_with_output()
        })
    }

    fn start(&self, program: &Path) -> io::Result<Child> {
        let mut command = Command::new(program);
        command.env("CNI_COMMAND", self.operation.name()).env("CNI_PATH", &self.parameters.path);
        command.env("CNI_CONTAINERID", &self.parameters.container_id);
        command.env("CNI_IFNAME", &self.parameters.ifname).env("CNI_NETNS", &self.parameters.netns);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut attempt = 1;
        loop {
            match command.spawn() {
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && attempt < ATTEMPTS => {
                    attempt += 1;
                    thread::sleep(PAUSE);
                }
                started => return started,
            }
        }
    }

    /// The error of a plugin that failed.
    fn failure(&self, output: &Output) -> CniError {
        let from = format!("{} of plugin {}", self.operation, self.kind);
        if output.stdout.is_empty() {
            return CniError::without_object(if output.stderr.is_empty() {
                format!("netplugin failed with no error message: {}", output.status)
            } else {
                format!("netplugin failed: {:?}", String::from_utf8_lossy(&output.stderr))
            })
            .with_details(from);
        }
        match CniError::parse(&output.stdout) {
            Ok(error) if error.details.is_empty() => error.with_details(from),
            Ok(error) => error,
            Err(why) => {
                let printed = String::from_utf8_lossy(&output.stdout);
                let msg =
                    format!("netplugin failed but error parsing its diagnostic message {printed:?}: {why}");
                CniError::without_object(msg).with_details(from)
            }
        }
    }
}

/// Finds a plugin in the directories of `CNI_PATH`.
fn find(kind: &str, path: &OsStr) -> Result<PathBuf, String> {
    if kind.is_empty() || kind.contains('/') || kind == ".." {
        return Err(format!("invalid plugin name: {kind:?}"));
    }
    let directories: Vec<_> = env::split_paths(path).collect();
    let mut candidates = directories.iter().map(|directory| directory.join(kind));
    candidates.find(|candidate| candidate.is_file()).ok_or_else(|| {
        let searched: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        format!("failed to find plugin {kind:?} in path [{}]", searched.join(" "))
    })
}
