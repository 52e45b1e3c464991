//! The stable id of a host, stored in a file.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flannel_core::{NodeId, chain};

use crate::atomic_file::write_atomically;

/// Readable by all: the id is not secret, it is also in the registry.
const MODE: u32 = 0o644;

/// A stable 128-bit host id, by which a host finds its lease after its address changed.
///
/// It is generated once and stored in a file. A host that loses the file is identified by its public address, as in
/// upstream flannel, and generates another id.
#[derive(Debug)]
pub struct NodeIdentity {
    path: Option<PathBuf>,
    id: Mutex<NodeId>,
}

impl NodeIdentity {
    /// Reads the id from a file, or generates one and writes it if the file is missing or invalid.
    ///
    /// # Errors
    ///
    /// Fails only if the system provides no random numbers. A file that cannot be read or written is logged; the id then
    /// lasts until the process ends.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let read = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|error| format!("{error}")),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(String::new()),
            Err(error) => Err(error.to_string()),
        };
        let id = match read {
            Ok(id) => id,
            Err(reason) => {
                let id = generate()?;
                if !reason.is_empty() {
                    tracing::warn!("ignoring node id file {}: {reason}; generated id {id}", path.display());
                }
                write(&path, id);
                id
            }
        };
        Ok(Self { path: Some(path), id: Mutex::new(id) })
    }

    /// Uses an id that the caller stores.
    #[must_use]
    pub fn fixed(id: NodeId) -> Self {
        Self { path: None, id: Mutex::new(id) }
    }

    /// Returns the id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Generates another id because another host has this one.
    pub(crate) fn renew(&self) {
        let id = match generate() {
            Ok(id) => id,
            Err(error) => return tracing::warn!("cannot generate another node id: {error}"),
        };
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        if let Some(path) = &self.path {
            write(path, id);
        }
    }
}

fn generate() -> io::Result<NodeId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(NodeId::from_bytes(bytes))
}

fn write(path: &Path, id: NodeId) {
    if let Err(error) = write_atomically(path, format!("{id}\n").as_bytes(), MODE) {
        tracing::warn!("cannot store the node id: {}; it changes at the next start", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("node-identity-{name}-{}", std::process::id()))
    }

    #[test]
    fn an_id_is_generated_once_and_stored() {
        let path = path("kept");
        let generated = NodeIdentity::open(&path).unwrap().id();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{generated}\n"));
        let again = NodeIdentity::open(&path).unwrap();
        assert_eq!(again.id(), generated);
        again.renew();
        assert_ne!(again.id(), generated);
        assert_eq!(NodeIdentity::open(&path).unwrap().id(), again.id());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_without_an_id_is_replaced_and_one_that_cannot_be_written_is_no_obstacle() {
        let path = path("garbage");
        fs::write(&path, "garbage").unwrap();
        let generated = NodeIdentity::open(&path).unwrap().id();
        assert_eq!(NodeIdentity::open(&path).unwrap().id(), generated);
        fs::remove_file(&path).unwrap();
        let nowhere = NodeIdentity::open("/proc/nowhere/id").unwrap();
        assert_ne!(nowhere.id(), generated);
    }
}
