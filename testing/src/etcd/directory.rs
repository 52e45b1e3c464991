//! The files of a test's server, and what identifies it among all others on the machine.

use crate::directory::{Directory, random};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// A directory of a server, in memory where there is such a file system.
#[derive(Debug)]
pub(super) struct DataDirectory(Directory);

impl DataDirectory {
    /// Creates an empty one.
    pub(super) fn create() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Directory::new_in(&parent).map(Self)
    }

    /// Where the server keeps its data: a directory inside the locked one, made by the server.
    pub(super) fn path(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Where a backup of the data is.
    pub(super) fn backup(&self) -> PathBuf {
        self.0.join("backup")
    }

    /// Removes the server's data.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Returns a random address in 127.0.0.0/8 that other programs are unlikely to use.
#[must_use]
pub fn random_loopback_address() -> Ipv4Addr {
    let [a, b, c, ..] = random().to_be_bytes();
    // Avoids 127.0.x.x, where services usually listen, and the first and last addresses.
    Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254))
}
