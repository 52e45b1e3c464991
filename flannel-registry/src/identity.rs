//! The id of a host, which it keeps in a file.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flannel_core::{NodeId, chain};

use crate::atomic_file::write_atomically;

/// Whoever looks after the host may read it: it stands in the registry, too.
const MODE: u32 = 0o644;

/// The id by which a host finds its own lease again though its address changed.
///
/// It is drawn once and kept in a file. A host that loses the file is known by its public address, as upstream's are, and
/// draws another one.
#[derive(Debug)]
pub struct NodeIdentity {
    path: Option<PathBuf>,
    id: Mutex<NodeId>,
}

impl NodeIdentity {
    /// Reads the id from a file; if there is none, or something else is in it, draws one and writes it there.
    ///
    /// # Errors
    ///
    /// Only if the system has no random numbers. A file that cannot be read or written is told and costs the memory.
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
                let id = draw()?;
                if !reason.is_empty() {
                    tracing::warn!("{} is not used: {reason}; this host is {id} now", path.display());
                }
                write(&path, id);
                id
            }
        };
        Ok(Self { path: Some(path), id: Mutex::new(id) })
    }

    /// Takes an id that somebody else keeps.
    #[must_use]
    pub fn fixed(id: NodeId) -> Self {
        Self { path: None, id: Mutex::new(id) }
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        *self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws another id, because another host has this one.
    pub(crate) fn renew(&self) {
        let id = match draw() {
            Ok(id) => id,
            Err(error) => return tracing::warn!("no other id can be drawn for this host: {error}"),
        };
        *self.id.lock().unwrap_or_else(PoisonError::into_inner) = id;
        if let Some(path) = &self.path {
            write(path, id);
        }
    }
}

fn draw() -> io::Result<NodeId> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(NodeId::from_bytes(bytes))
}

fn write(path: &Path, id: NodeId) {
    if let Err(error) = write_atomically(path, format!("{id}\n").as_bytes(), MODE) {
        tracing::warn!("The id of this host is not kept: {}", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("node-identity-{name}-{}", std::process::id()))
    }

    #[test]
    fn an_id_is_drawn_once_and_kept() {
        let path = path("kept");
        let drawn = NodeIdentity::open(&path).unwrap().id();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{drawn}\n"));
        let again = NodeIdentity::open(&path).unwrap();
        assert_eq!(again.id(), drawn);
        again.renew();
        assert_ne!(again.id(), drawn);
        assert_eq!(NodeIdentity::open(&path).unwrap().id(), again.id());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_without_an_id_is_replaced_and_one_that_cannot_be_written_is_no_obstacle() {
        let path = path("garbage");
        fs::write(&path, "garbage").unwrap();
        let drawn = NodeIdentity::open(&path).unwrap().id();
        assert_eq!(NodeIdentity::open(&path).unwrap().id(), drawn);
        fs::remove_file(&path).unwrap();
        let nowhere = NodeIdentity::open("/proc/nowhere/id").unwrap();
        assert_ne!(nowhere.id(), drawn);
    }
}
