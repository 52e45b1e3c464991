//! An `etcd` that is not a server of its own: a learner or a proxy.

use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

/// An `etcd` process, killed on drop together with its files.
pub(crate) struct Process {
    child: Child,
    pub(crate) url: String,
    directory: PathBuf,
}

impl Process {
    /// Starts `etcd` and waits until it accepts connections at `address`.
    pub(crate) fn start(address: Ipv4Addr, arguments: &[String]) -> Self {
        let directory = std::env::temp_dir().join(format!("flannel-etcd-{address}"));
        let program = flannel_testing::program("etcd", "etcd-server").unwrap();
        let child = Command::new(program)
            .args(arguments)
            .current_dir(std::env::temp_dir())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = Self { child, url: format!("http://{address}:2379"), directory };
        let start = Instant::now();
        while TcpStream::connect((address, 2379)).is_err() {
            assert!(start.elapsed() < PATIENCE, "etcd does not listen at {address}: {arguments:?}");
            thread::sleep(Duration::from_millis(20));
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended: io::Result<()> = self.child.kill().and_then(|()| self.child.wait().map(drop));
        ended.unwrap();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
