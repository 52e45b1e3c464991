//! The state of each attachment, kept between ADD and DEL: the bytes of the delegate's configuration.
//!
//! A file is named `<container>:<network>:<interface>`, so that each attachment of a container has its own. A hard link
//! `<container>`, the name that upstream's plugin uses, points to the same file: each plugin can remove the attachments of
//! the other.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use flannel_registry::write_atomically;
use serde_json::{Map, Value};

use crate::error::CniError;
use crate::netconf::NetConf;
use crate::parameters::is_name;

/// Separates the parts of a file's name; no part contains it.
const SEPARATOR: char = ':';

/// The interface of an attachment whose file does not name it: the one that every runtime asks for.
const DEFAULT_INTERFACE: &str = "eth0";

/// The attachments of one network, in the directory of all.
#[derive(Clone, Debug)]
pub(crate) struct AttachmentStore {
    directory: PathBuf,
    network: String,
}

/// The state of one attachment.
#[derive(Clone, Debug)]
pub(crate) struct AttachmentState {
    pub(crate) container_id: String,
    pub(crate) ifname: String,
    /// The delegate's configuration.
    pub(crate) bytes: Vec<u8>,
    path: PathBuf,
}

impl AttachmentState {
    /// The delegate's type and configuration; `None` if the file is damaged.
    pub(crate) fn configuration(&self) -> Option<(String, Map<String, Value>)> {
        let object: Map<String, Value> = serde_json::from_slice(&self.bytes).ok()?;
        let kind = object.get("type")?.as_str()?.to_owned();
        Some((kind, object))
    }
}

impl AttachmentStore {
    pub(crate) fn new(conf: &NetConf) -> Result<Self, CniError> {
        Ok(Self { directory: conf.files()?.data_dir, network: conf.name().to_owned() })
    }

    /// Writes the state of an attachment, replacing an earlier one.
    pub(crate) fn save(&self, container_id: &str, ifname: &str, bytes: &[u8]) -> Result<(), CniError> {
        let path = self.path(container_id, ifname);
        self.write(&path, &self.directory.join(container_id), bytes)
            .map_err(|error| CniError::plugin(format!("failed to save the state of {container_id}: {error}")))
    }

    fn write(&self, path: &Path, link: &Path, bytes: &[u8]) -> io::Result<()> {
        // Configurations may hold secrets of other plugins.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        if same_file(path, link) {
            ignore_not_found(fs::remove_file(link))?;
        }
        write_atomically(path, bytes, 0o600).map_err(io::Error::other)?;
        match fs::hard_link(path, link) {
            // It belongs to another attachment of the container.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    }

    /// Reads the state of an attachment, also if upstream's plugin wrote it.
    pub(crate) fn find(&self, container_id: &str, ifname: &str) -> Result<Option<AttachmentState>, CniError> {
        let (container_id, ifname) = (container_id.to_owned(), ifname.to_owned());
        let own = AttachmentState {
            path: self.path(&container_id, &ifname),
            container_id,
            ifname,
            bytes: Vec::new(),
        };
        let upstreams = AttachmentState { path: self.directory.join(&own.container_id), ..own.clone() };
        if let Some(found) = read(own)? {
            return Ok(Some(found));
        }
        Ok(read(upstreams)?.filter(|state| self.is_upstreams(state)))
    }

    /// Reads the states of all attachments of this network.
    pub(crate) fn all(&self) -> Result<Vec<AttachmentState>, CniError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| unreadable(&self.directory, &error))?,
        };
        let mut states = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(&self.directory, &error))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let parts: Vec<_> = name.split(SEPARATOR).collect();
            let (container_id, ifname) = match parts[..] {
                [id, network, ifname] if network == self.network => (id.to_owned(), ifname.to_owned()),
                [id] if is_name(id) => (id.to_owned(), DEFAULT_INTERFACE.to_owned()),
                _ => continue,
            };
            let has_network = parts.len() == 3;
            let state = read(AttachmentState { container_id, ifname, bytes: Vec::new(), path })?;
            states.extend(state.filter(|state| has_network || self.is_upstreams(state)));
        }
        Ok(states)
    }

    /// Removes the state of an attachment, and the hard link if it is this attachment's.
    pub(crate) fn remove(&self, state: &AttachmentState) -> Result<(), CniError> {
        let link = self.directory.join(&state.container_id);
        let unlinked =
            if same_file(&state.path, &link) { ignore_not_found(fs::remove_file(&link)) } else { Ok(()) };
        unlinked
            .and_then(|()| ignore_not_found(fs::remove_file(&state.path)))
            .map_err(|error| CniError::plugin(format!("failed to remove {}: {error}", state.path.display())))
    }

    /// Whether upstream's plugin wrote this file, for our network: a file of ours has two names.
    fn is_upstreams(&self, state: &AttachmentState) -> bool {
        let alone = fs::metadata(&state.path).is_ok_and(|metadata| metadata.nlink() == 1);
        // Upstream does not write atomically; a truncated file may belong to any network.
        alone
            && state
                .configuration()
                .is_none_or(|(_, object)| object.get("name").is_some_and(|name| *name == self.network))
    }

    fn path(&self, container_id: &str, ifname: &str) -> PathBuf {
        self.directory.join(format!("{container_id}{SEPARATOR}{}{SEPARATOR}{ifname}", self.network))
    }
}

/// Reads the file of `state`; `None` if there is no file.
fn read(state: AttachmentState) -> Result<Option<AttachmentState>, CniError> {
    match fs::read(&state.path) {
        Ok(bytes) => Ok(Some(AttachmentState { bytes, ..state })),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => Ok(None),
        Err(error) => Err(unreadable(&state.path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> CniError {
    CniError::plugin(format!("failed to read {}: {error}", path.display()))
}

/// Whether two different paths are hard links to one file.
fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    one != other && identity(one).is_some_and(|one| identity(other) == Some(one))
}

fn ignore_not_found(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
